#!/usr/bin/env python3
"""Measure the demo's first-stage heads on the test pictures, through qbridge's own commands.

    python train/evaluate_heads.py --data DATA --qbridge QBRIDGE --bundle BUNDLE --work WORK

The pictures are those of data.py's test, in the style that was never trained on, one of each caption. Prints
recall of pictures by captions and captions by pictures (`qbridge eval`), by the similarity (ITC) and, for
things alone, with the matching head (ITM) on the first 32; the area under the ROC curve of both on each picture's caption
and a wrong one (`qbridge filter`); captions that are right word for word (`qbridge caption`); and what `qbridge bootstrap` makes of
a fifth of the captions swapped.
"""

import argparse
import json
import random
import subprocess
from pathlib import Path

from captions import Captioning, plain
from data import read_names
from features import read_scenes
from scenes import Scene

SEED = 30_000
SWAPPED_SHARE = 0.2
RERANK = 32


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def area(right: list[float], wrong: list[float]) -> float:
    """Area under the ROC curve: how often a right pair scores more than a wrong one; ties count half."""
    wins = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
    return wins / len(right) / len(wrong)


def areas(qbridge: list[str], pictures: dict[str, Scene], captioning: Captioning, work: Path) -> dict[str, float]:
    """The area under the curve for wrong captions of other pictures, and for those wrong in one detail."""
    names = list(pictures)
    captions = {name: plain(scene.names) for name, scene in pictures.items()}
    rows = [{"image": name, "caption": captions[name], "kind": "right"} for name in names]
    for name in names:
        other = captioning.rng.choice([o for o in names if not set(pictures[o].names) & set(pictures[name].names)])
        rows.append({"image": name, "caption": captions[other], "kind": "of another picture"})
        rows.append({"image": name, "caption": captioning.false(pictures[name]), "kind": "wrong in one detail"})
    table, out = write_lines(work / "pairs.jsonl", rows), work / "scored.jsonl"
    run(qbridge, "filter", table, "--text-column", "caption", "--min-itm", 0, "--scores", "--out", out)
    scores: dict[str, dict[str, list[float]]] = {}
    for row in read_lines(out):
        for head in ("similarity", "probability"):
            scores.setdefault(row["kind"], {}).setdefault(head, []).append(row[head])
    right = scores.pop("right")
    return {f"{head}, {kind}": area(right[head], wrong[head]) for kind, wrong in scores.items() for head in wrong}


def bootstrap(qbridge: list[str], pictures: dict[str, Scene], rng: random.Random, work: Path) -> dict[str, str]:
    """Of swapped and of good captions, how many are dropped; of new ones, how many are kept."""
    captions = {name: plain(scene.names) for name, scene in pictures.items()}
    swapped = rng.sample(sorted(pictures), round(SWAPPED_SHARE * len(pictures)))
    for name, other in zip(swapped, swapped[1:] + swapped[:1]):
        captions[name] = plain(pictures[other].names)
    rows = [{"image": name, "caption": caption} for name, caption in captions.items()]
    table, out = write_lines(work / "swapped.jsonl", rows), work / "clean.jsonl"
    run(qbridge, "bootstrap", table, "--text-column", "caption", "--out", out)
    dropped = {row["image"]: {text["source"] for text in row["dropped"]} for row in read_lines(out)}
    found = sum("web" in dropped[name] for name in swapped)
    lost = sum("web" in dropped[name] for name in pictures if name not in set(swapped))
    fresh = [(row["image"], text["text"]) for row in read_lines(out) for text in row["texts"] if text["source"] == "synthetic"]
    right = sum(text == plain(pictures[image].names).lower() for image, text in fresh)
    return {
        "swapped captions that are dropped": f"{found} of {len(swapped)}",
        "good captions that are dropped": f"{lost} of {len(pictures) - len(swapped)}",
        "new captions that are kept": f"{len(fresh)} of {len(pictures)}",
        "kept new captions that are right word for word": f"{right} of {len(fresh)}",
    }


def recall(qbridge: list[str], pictures: dict[str, Scene], rerank: int, work: Path) -> list[dict]:
    annotations = [{"image": name, "caption": [plain(scene.names)]} for name, scene in pictures.items()]
    (work / "flickr30k_test.json").write_text(json.dumps(annotations))
    out = work / f"recall-{rerank}.jsonl"
    text = run(qbridge, "eval", "--task", "flickr30k", "--data", work, "--images", qbridge[2], "--rerank", rerank, "--out", out, "--overwrite", "--json")
    return json.loads(text.splitlines()[-1])["metrics"]


def run(qbridge: list[str], command: str, *args: object) -> str:
    """One command of qbridge on the bundle, in the directory of the pictures; its standard output."""
    program, bundle, pictures = qbridge
    fixed = [program, command, bundle, *map(str, args), "--quiet"] + (["--overwrite"] if "--out" in args and "--overwrite" not in args else [])
    return subprocess.run(fixed, cwd=pictures, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what data.py made")
    parser.add_argument("--qbridge", type=Path, required=True, help="the program")
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle of the heads")
    parser.add_argument("--work", type=Path, required=True, help="directory for tables and scores")
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    test = (options.data / "test").absolute()
    names, taken_for = read_names(options.data)
    pictures, seen = {}, set()
    for number, scene in enumerate(read_scenes(test)):
        if plain(scene.names) not in seen:
            seen.add(plain(scene.names))
            pictures[f"{number:04}.png"] = scene
    alone = {name: scene for name, scene in pictures.items() if scene.layout == "single"}
    qbridge = [str(options.qbridge.absolute()), str(options.bundle.absolute()), str(test)]

    for what, some, rerank in (("things alone", alone, 0), ("all pictures", pictures, 0), ("things alone", alone, RERANK)):
        for metric in recall(qbridge, some, rerank, work):
            low, high = metric["interval"]
            print(f"{what} ({len(some)}), first {rerank} by ITM: {metric['name']} {metric['value']:.1f} ({low:.1f} to {high:.1f})")
    rng = random.Random(SEED)
    for kind, value in areas(qbridge, pictures, Captioning(names, taken_for, rng), work).items():
        print(f"area under the ROC curve, {kind}: {value:.3f}")
    out = work / "captions.jsonl"
    run(qbridge, "caption", *pictures, "--out", out)
    right: dict[str, list[bool]] = {}
    for row in read_lines(out):
        scene = pictures[Path(row["image"]).name]
        right.setdefault(scene.layout, []).append(row["caption"] == plain(scene.names).lower())
    for layout, found in right.items():
        print(f"captions right word for word, {layout}: {sum(found)} of {len(found)}")
    for kind, value in bootstrap(qbridge, pictures, rng, work).items():
        print(f"{kind}: {value}")


if __name__ == "__main__":
    main()
