#!/usr/bin/env python3
"""Draw demo/pictures: a few scenes in the held-out style, chosen before any model had seen them.

    python train/samples.py --data DATA --out demo/pictures
"""

import argparse
from pathlib import Path

from names import HELD_OUT_STYLE
from scenes import SIDE, Item, Scene, draw, plain

PALE_BLUE, PALE_YELLOW, PALE_GREEN = (221, 238, 250), (253, 245, 215), (226, 244, 222)


def item(icon: str, x: float, y: float, size: float) -> Item:
    """A drawing of the held-out style; place and size are shares of the picture's side."""
    return Item(icon, f"{HELD_OUT_STYLE}/{icon}.png", x * SIDE, y * SIDE, size * SIDE)


SAMPLES = {
    "dog": plain("dog", f"{HELD_OUT_STYLE}/dog-face.png"),
    "penguin": plain("penguin", f"{HELD_OUT_STYLE}/penguin.png"),
    "banana": plain("banana", f"{HELD_OUT_STYLE}/banana.png"),
    "bicycle": plain("bicycle", f"{HELD_OUT_STYLE}/bicycle.png"),
    "sunflower": plain("sunflower", f"{HELD_OUT_STYLE}/sunflower.png"),
    "lion-umbrella": Scene("pair", (item("lion", 0.26, 0.5, 0.44), item("umbrella", 0.74, 0.5, 0.44)), PALE_BLUE),
    "rocket-pizza": Scene("pair", (item("rocket", 0.26, 0.5, 0.44), item("pizza", 0.74, 0.5, 0.44)), PALE_GREEN),
    "balloons": Scene("group", tuple(item("balloon", x, y, 0.38) for x, y in ((0.5, 0.26), (0.26, 0.74), (0.74, 0.74))), PALE_YELLOW),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what data.py made: its drawings are used")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, scene in SAMPLES.items():
        draw(scene, arguments.data / "drawings").save(arguments.out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
