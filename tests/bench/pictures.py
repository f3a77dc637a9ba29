"""Makes different pictures of 224 pixels out of the demo's: turned, mirrored, moved and tinted. Needs Pillow.

    python tests/bench/pictures.py DIR 16
"""

import sys
from pathlib import Path

from common import PICTURES


def make(out: Path, n: int) -> None:
    from PIL import Image, ImageOps

    sources = [Image.open(path).convert("RGB") for path in sorted(PICTURES.glob("*.png"))]
    for i in range(n):
        picture = sources[i % len(sources)].resize((224, 224))
        turn = i // len(sources)
        picture = ImageOps.mirror(picture) if turn % 2 else picture
        picture = picture.rotate(7 * (turn // 2), fillcolor="white")
        # A shade that tells each from all others.
        shade = Image.new("RGB", picture.size, (255 - i % 16, 255 - i // 16 % 16, 255 - i // 256 % 16))
        Image.blend(picture, shade, 0.1).save(out / f"{i:04}.png")


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
