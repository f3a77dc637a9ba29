#!/usr/bin/env python3
"""Make everything train.py and evaluate.py read, below one data directory.

    python train/data.py --data DATA --checkpoint CHECKPOINT

1. fetch the emoji sets (npm) and render every drawing;
2. vision features of each training drawing, and from them the choice of names (names.json);
3. parts of augmented pictures with their features (part-00, part-01, ...);
4. the test pictures in the held-out style with their questions (test/).

What is there already is kept, so that a run can be stopped and taken up again, and more parts
asked for later. Everything follows from the seeds below.
"""

import argparse
import json
import random
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import choose
import scenes
from drawings import fetch_packages, render
from features import feature_file, read_scenes, write_features
from names import HELD_OUT_STYLE, Drawing, Name, candidates, find_drawings
from questions import Asking
from scenes import Scene

ALWAYS = set(
    "dog, cat, bird, fish, frog, flower, bee, rose, carrot, truck, ship, duck, orange, octopus, robot, ghost".split(", ")
)
"""Names a person will ask about first; they stay however hard their drawings are."""

MIX = (("single", 0.45), ("pair", 0.25), ("same", 0.18), ("mixed", 0.12))
"""Kinds of picture in a part. "same" is two to four of one thing, "mixed" of different things."""

TEST_SEED = 20_000
TEST_PAIRS = 150
TEST_PER_COUNT = 60


class Sampler:
    """Draws scenes in one style at a time, all names of a style being equally likely."""

    def __init__(self, drawings: list[Drawing], rng: random.Random):
        self.rng = rng
        self.by_style = defaultdict(lambda: defaultdict(list))
        for drawing in drawings:
            self.by_style[drawing.style][drawing.name].append(drawing)
        self.styles = sorted(self.by_style)
        self.weights = [len(self.by_style[style]) for style in self.styles]

    def things(self, count: int) -> list[tuple[str, str]]:
        """(name, file) of `count` different names in one style."""
        (style,) = self.rng.choices(self.styles, self.weights)
        names = self.rng.sample(sorted(self.by_style[style]), count)
        return [(name, self.rng.choice(self.by_style[style][name]).file) for name in names]

    def scene(self, kind: str) -> Scene:
        """A random scene of one of the kinds of MIX."""
        if kind == "single":
            return scenes.single(self.rng, *self.things(1)[0])
        if kind == "pair":
            return scenes.pair(self.rng, self.things(2))
        count = self.rng.choice((2, 3, 4))
        return scenes.group(self.rng, self.things(1) * count if kind == "same" else self.things(count))

    def part(self, count: int) -> list[Scene]:
        kinds, weights = zip(*MIX)
        return [self.scene(kind) for kind in self.rng.choices(kinds, weights, k=count)]


def choose_names(data: Path, plain: Path, candidate_names: list[Name], count: int) -> list[Name]:
    """The chosen names, also written with their look-alikes to names.json."""
    listing = data / "names.json"
    if not listing.is_file():
        drawn = read_scenes(plain)
        pooled = choose.pool(feature_file(plain, len(drawn), "r"))
        labels = [scene.items[0].name for scene in drawn]
        styles = [scene.items[0].file.split("/")[0] for scene in drawn]
        left, taken_for, accuracy = choose.choose(pooled, labels, styles, count, ALWAYS)
        print(f"{len(left)} names; a family of styles left out is named right in {accuracy:.0%} by the frozen features")
        chosen = [name for name in candidate_names if name.text in left]
        value = {"names": [asdict(name) for name in chosen], "taken_for": taken_for}
        listing.write_text(json.dumps(value, indent=1) + "\n")
    return read_names(data)[0]


def read_names(data: Path) -> tuple[list[Name], dict[str, list[str]]]:
    """The chosen names, and for each the names it is taken for most."""
    value = json.loads((data / "names.json").read_text())
    return [Name(**{**name, "labels": tuple(name["labels"])}) for name in value["names"]], value["taken_for"]


def test_questions(names: list[Name], taken_for: dict[str, list[str]], drawings: list[Drawing]) -> tuple[list[Scene], list[dict]]:
    """Test scenes in the held-out style, and what is asked of each."""
    rng = random.Random(TEST_SEED)
    sampler = Sampler(drawings, random.Random(TEST_SEED + 1))
    asking = Asking(names, taken_for, random.Random(TEST_SEED + 2))
    kinds = {name.text: name.kind for name in names}
    pictures: list[Scene] = []
    asked: list[dict] = []

    def ask(measure: str, question: str, answer: str) -> None:
        asked.append({"picture": len(pictures) - 1, "measure": measure, "question": question, "answer": answer})

    for drawing in drawings:
        pictures.append(scenes.plain(drawing.name, drawing.file))
        ask("name", "What is this?", asking.what(pictures[-1])[1])
        ask("yes/no", *asking.is_there(pictures[-1]))
        if kinds[drawing.name] in ("animal", "plant", "food"):
            wanted = rng.choice(("yes", "no"))
            found = next((q for q in (asking.is_kind(pictures[-1]) for _ in range(50)) if q and q[1] == wanted), None)
            if found:
                ask("yes/no", *found)
    for count in range(1, 5):
        for n in range(TEST_PER_COUNT):
            kind = "single" if count == 1 else ("same", "mixed")[n % 2]
            scene = sampler.scene(kind)
            while len(scene.items) != count:
                scene = sampler.scene(kind)
            pictures.append(scene)
            ask("how many", "How many things are there?", asking.how_many(scene)[1])
    for _ in range(TEST_PAIRS):
        scene = sampler.scene("pair")
        pictures.append(scene)
        for name, side in zip(scene.names, ("left", "right")):
            ask("left/right", f"Is the {name} on the left or on the right?", side)
            ask("name on a side", f"What is on the {side}?", asking.what(scenes.plain(name, ""))[1])
    return pictures, asked


def write_test(data: Path, names: list[Name], taken_for: dict[str, list[str]], drawings: list[Drawing]) -> list[Scene]:
    """Write test/*.png and test/questions.jsonl; returns the scenes."""
    folder = data / "test"
    folder.mkdir(parents=True, exist_ok=True)
    pictures, asked = test_questions(names, taken_for, drawings)
    for number, scene in enumerate(pictures):
        scenes.draw(scene, data / "drawings").save(folder / f"{number:04}.png")
    lines = [json.dumps({**question, "picture": f"{question['picture']:04}.png"}) for question in asked]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory for everything made (tens of gigabytes at most)")
    parser.add_argument("--checkpoint", type=Path, required=True, help="what demo/make_checkpoint.py wrote: its vision tower is used")
    parser.add_argument("--names", type=int, default=300, help="how many names to keep")
    parser.add_argument("--parts", type=int, default=4, help="how many parts of pictures")
    parser.add_argument("--part-size", type=int, default=3000, help="pictures in a part")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    arguments = parser.parse_args()
    data, checkpoint, device = arguments.data, arguments.checkpoint, arguments.device

    packages = fetch_packages(data)
    candidate_names = candidates(packages)
    drawings = render(find_drawings(packages, candidate_names), packages, data / "drawings")
    training = [drawing for drawing in drawings if drawing.style != HELD_OUT_STYLE]

    plain = data / "plain"
    write_features(plain, [scenes.plain(d.name, d.file) for d in training], data / "drawings", checkpoint, device)
    names = choose_names(data, plain, candidate_names, arguments.names)
    taken_for = read_names(data)[1]
    chosen = {name.text for name in names}

    held_out = [d for d in drawings if d.style == HELD_OUT_STYLE and d.name in chosen]
    test = write_test(data, names, taken_for, held_out)
    write_features(data / "test", test, data / "drawings", checkpoint, device)

    training = [drawing for drawing in training if drawing.name in chosen]
    for part in range(arguments.parts):
        pictures = Sampler(training, random.Random(part)).part(arguments.part_size)
        write_features(data / f"part-{part:02}", pictures, data / "drawings", checkpoint, device)
        print(f"part {part}: {len(pictures)} pictures", flush=True)


if __name__ == "__main__":
    main()
