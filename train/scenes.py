"""Pictures made of drawings: one thing, or two to four of them on a coloured ground.

A `Scene` says exactly what is where, so that it can be stored as a line of JSON, drawn again,
and asked about. Coordinates are pixels of a SIDE x SIDE picture.
"""

import colorsys
import math
import random
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

SIDE = 224
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Item:
    """One drawing in a scene: its name, its file below the drawings directory, and its place."""

    name: str
    file: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    mirrored: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture to draw. `layout` is "single", "pair" (one left, one right) or "group"."""

    layout: str
    items: tuple[Item, ...]
    ground: tuple[int, int, int] = WHITE
    colour: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0
    hue: float = 0.0
    tones: int = 256
    blur: float = 0.0

    def to_json(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_json(value: dict) -> "Scene":
        items = tuple(Item(**item) for item in value["items"])
        return Scene(**{**value, "items": items, "ground": tuple(value["ground"])})

    @property
    def names(self) -> list[str]:
        """Names from left to right."""
        return [item.name for item in sorted(self.items, key=lambda item: item.x)]


@lru_cache(maxsize=8192)
def _drawing(path: Path) -> Image.Image:
    return Image.open(path).convert("RGBA")


def draw(scene: Scene, drawings: Path) -> Image.Image:
    """The scene as an RGB picture of SIDE x SIDE pixels."""
    canvas = Image.new("RGB", (SIDE, SIDE), scene.ground)
    for item in scene.items:
        size = max(8, round(item.size))
        stamp = _drawing(drawings / item.file).resize((size, size), Image.BICUBIC)
        if item.mirrored:
            stamp = stamp.transpose(Image.FLIP_LEFT_RIGHT)
        if item.angle:
            stamp = stamp.rotate(item.angle, Image.BICUBIC, expand=True)
        corner = (round(item.x - stamp.width / 2), round(item.y - stamp.height / 2))
        canvas.paste(stamp, corner, stamp)
    for enhance, factor in (
        (ImageEnhance.Color, scene.colour),
        (ImageEnhance.Brightness, scene.brightness),
        (ImageEnhance.Contrast, scene.contrast),
    ):
        if factor != 1.0:
            canvas = enhance(canvas).enhance(factor)
    if scene.hue:
        hue, saturation, value = canvas.convert("HSV").split()
        turned = hue.point(lambda h: (h + round(256 * scene.hue)) % 256)
        canvas = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    if scene.tones < 256:
        canvas = ImageOps.posterize(canvas.filter(ImageFilter.MedianFilter(3)), scene.tones.bit_length() - 1)
    if scene.blur:
        canvas = canvas.filter(ImageFilter.GaussianBlur(scene.blur))
    return canvas


def plain(name: str, file: str) -> Scene:
    """The drawing alone in the middle of a white ground."""
    return Scene("single", (Item(name, file, SIDE / 2, SIDE / 2, SIDE * 0.9),))


def _ground(rng: random.Random) -> tuple[int, int, int]:
    """White often, otherwise a pale colour, now and then a strong one."""
    kind = rng.random()
    if kind < 0.35:
        return WHITE
    if kind < 0.85:
        hue, light, saturation = rng.random(), rng.uniform(0.8, 0.97), rng.uniform(0.1, 0.9)
    else:
        hue, light, saturation = rng.random(), rng.uniform(0.15, 0.8), rng.uniform(0.0, 0.8)
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue, light, saturation))


def _jitter(rng: random.Random) -> dict:
    """Changes that make one drawing look like another artist's: colours, fewer tones, softer edges."""
    if rng.random() < 0.3:
        return {}
    changes = {"colour": rng.uniform(0.4, 1.6), "brightness": rng.uniform(0.75, 1.15), "contrast": rng.uniform(0.75, 1.3)}
    if rng.random() < 0.4:
        changes["hue"] = rng.uniform(-0.07, 0.07)
    if rng.random() < 0.3:
        changes["tones"] = rng.choice((4, 8, 16))
    elif rng.random() < 0.25:
        changes["blur"] = rng.uniform(0.4, 1.6)
    return changes


def _item(rng: random.Random, name: str, file: str, x: float, y: float, size: float) -> Item:
    angle = rng.gauss(0, 8) if rng.random() < 0.5 else 0.0
    return Item(name, file, x, y, size, angle, rng.random() < 0.5)


def single(rng: random.Random, name: str, file: str) -> Scene:
    """One drawing, of any size, anywhere it fits."""
    size = SIDE * rng.uniform(0.4, 1.0)
    room = (SIDE - size) / 2
    x, y = (SIDE / 2 + rng.uniform(-room, room) for _ in range(2))
    return Scene("single", (_item(rng, name, file, x, y, size),), _ground(rng), **_jitter(rng))


def pair(rng: random.Random, things: list[tuple[str, str]]) -> Scene:
    """Two drawings (name, file), the first on the left, well apart."""
    items = []
    for (name, file), centre in zip(things, (0.26, 0.74)):
        size = SIDE * rng.uniform(0.34, 0.48)
        x = SIDE * centre + rng.uniform(-0.02, 0.02) * SIDE
        y = SIDE * rng.uniform(0.3, 0.7)
        items.append(_item(rng, name, file, x, y, size))
    return Scene("pair", tuple(items), _ground(rng), **_jitter(rng))


def group(rng: random.Random, things: list[tuple[str, str]]) -> Scene:
    """Two to four drawings (name, file) in cells of a loose grid."""
    cells = [(x, y) for x in (0.27, 0.73) for y in (0.27, 0.73)]
    if len(things) == 3 and rng.random() < 0.4:
        cells = [(0.5, 0.26), (0.26, 0.74), (0.74, 0.74)]
    if len(things) <= 3 and rng.random() < 0.25:
        cells = [((n + 0.5) / len(things), 0.5) for n in range(len(things))]
    rng.shuffle(cells)
    biggest = 0.3 if any(math.isclose(x, 1 / 6) for x, _ in cells) else 0.44
    shared = rng.uniform(0.28, biggest)
    items = []
    for (name, file), (x, y) in zip(things, cells):
        size = SIDE * min(biggest, shared * rng.uniform(0.85, 1.15))
        dx, dy = (rng.uniform(-0.03, 0.03) for _ in range(2))
        items.append(_item(rng, name, file, SIDE * (x + dx), SIDE * (y + dy), size))
    return Scene("group", tuple(items), _ground(rng), **_jitter(rng))
