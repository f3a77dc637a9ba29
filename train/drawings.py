"""Fetches the emoji sets and renders every drawing to a transparent PNG."""

import json
import subprocess
from pathlib import Path

from PIL import Image

from names import Drawing

PACKAGES = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/fxemoji": "1.2.2",
    "@iconify-json/streamline-emojis": "1.2.4",
    "@iconify-json/twemoji": "1.2.5",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "@resvg/resvg-js": "2.6.2",
    "emojibase-data": "17.0.0",
}
SIZE = 256
RENDERER = Path(__file__).with_name("render.mjs")


def fetch_packages(data: Path) -> Path:
    """Install the pinned npm packages below `data`; returns their folder."""
    data.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps({"private": True, "dependencies": PACKAGES}, indent=1)
    manifest = data / "package.json"
    if not manifest.is_file() or manifest.read_text() != wanted:
        manifest.write_text(wanted)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=data, check=True)
    return data / "node_modules"


def render(drawings: list[Drawing], packages: Path, out: Path) -> list[Drawing]:
    """Write `out/<drawing.file>` for each drawing, [SIZE, SIZE] RGBA; returns those that rendered."""
    for style in {drawing.style for drawing in drawings}:
        (out / style).mkdir(parents=True, exist_ok=True)
    missing = [drawing for drawing in drawings if not (out / drawing.file).is_file()]
    vector = [drawing for drawing in missing if (packages / "@iconify-json" / drawing.style).is_dir()]
    for drawing in missing:
        if drawing not in vector:
            source = packages / "@lobehub" / drawing.style / "assets" / drawing.source
            Image.open(source).convert("RGBA").resize((SIZE, SIZE), Image.LANCZOS).save(out / drawing.file)
    while vector:
        done = _render_batch(vector, packages, out)
        vector = vector[done + 1 :]
    return [drawing for drawing in drawings if (out / drawing.file).is_file()]


def _render_batch(drawings: list[Drawing], packages: Path, out: Path) -> int:
    """Render in one process until it ends or aborts; returns how many were done."""
    jobs = [
        {"icons": str(packages / "@iconify-json" / d.style / "icons.json"), "icon": d.source, "out": str(out / d.file), "size": SIZE}
        for d in drawings
    ]
    lines = "\n".join(map(json.dumps, jobs))
    result = subprocess.run(["node", str(RENDERER), str(packages)], input=lines, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return len(result.stdout.split())
