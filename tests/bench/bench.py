"""`make bench`: qbridge and its peers side by side, in one run.

    python tests/bench/bench.py --qbridge target/release/qbridge --demo BUNDLE --work DIR [--llama-bench PATH] [--quick]

Encoding (`vision.py`), captions (`caption.py`), first tokens (`first_token.py`), the language model alone
(`language_model.py`) and where ViT and Q-Former spend their time (`qbridge bench --operations`), each on the demo's bundle and on one of full size with random weights (ViT-g/14, BLIP-2's Q-Former
and an OPT of 1.3B at Q4_K_M; `full_size.py`), which is made in `--work` once. Raw runs go to `--out` as they come, one JSON file a
part and bundle, and the table of all that is there to `--report`, between its two marks. `--parts` runs some of them,
`--table` none.
"""

import argparse
import json
import os
import shutil
import time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import caption
import first_token
import language_model
import table
import vision
from common import HERE, machine, progress, python, run, versions

PARTS = ("encode", "captions", "first-token", "language-model", "operations")
FULL_SIZE = "blip2-opt-1.3b"
DOCS = HERE.parent.parent / "docs"


def full_size(args: argparse.Namespace) -> tuple[Path, Path]:
    """The bundle of full size, and the checkpoint that it was made of."""
    checkpoint, bundle = args.work / "checkpoint", args.work / FULL_SIZE
    if not bundle.exists():
        progress(f"making {FULL_SIZE} of random weights, once")
        args.work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(checkpoint, ignore_errors=True)
        run(python("full_size.py", FULL_SIZE, checkpoint, "--dtype", "float16"))
        run([args.qbridge, "convert", checkpoint, "--out", bundle])
    return checkpoint, bundle


def settings(args: argparse.Namespace, bundle: Path, checkpoint: Path | None) -> SimpleNamespace:
    """What each bench is run with: less of what takes long."""
    is_large = checkpoint is not None
    batch = ("1,1,4" if args.quick else "1,1,1,4,16") if is_large else "1,1,1,1,4,4,16,16"
    batch = ",".join(n for n in batch.split(",") if int(n) <= args.largest_batch)
    return SimpleNamespace(
        qbridge=args.qbridge,
        bundle=bundle,
        checkpoint=checkpoint,
        picture=vision.PICTURES / "dog.png",
        # Another bundle of that name has other weights.
        onnx=args.work / f"onnx-{bundle.name}-{sha256((bundle / 'bundle.toml').read_bytes()).hexdigest()[:12]}",
        rounds=args.rounds,
        without=args.without,
        batch=batch,
        llama_bench=args.llama_bench,
        rows=256,
        tokens=64,
        repeat=1 if args.quick else 3,
        threads=os.cpu_count(),
    )


def captions(args: argparse.Namespace, found: SimpleNamespace) -> dict:
    is_large = found.checkpoint is not None
    found.pictures, found.batch = (4, 4) if is_large else (64, 8)
    found.tokens = 16 if is_large else 0
    return caption.measure(found)


def operations(found: SimpleNamespace) -> dict:
    """Where the time goes; nobody is beside it."""
    command = [found.qbridge, "bench", found.bundle, found.picture, "--operations", "--json"]
    command += ["--repeat", found.repeat, "--warm-up", 1]
    kinds = {}
    for kind in ("f32", "int8"):
        progress(f"{found.bundle.name}, operations: {kind}")
        kinds[kind] = json.loads(run([*command, "--vision", kind]).output)["parts"]
    return {"part": "operations", "subject": found.bundle.name, "kinds": kinds, "failed": {}}


def save(out: Path, result: dict, about: dict) -> None:
    name = f"{result['part']}-{result['subject']}.json".replace(" ", "-")
    (out / name).write_text(json.dumps(result | about, indent=1) + "\n")


def measure(args: argparse.Namespace) -> None:
    bundles = [(args.demo, None)]
    if "full-size" in args.subjects:
        checkpoint, bundle = full_size(args)
        bundles.append((bundle, checkpoint))
    if "demo" not in args.subjects:
        bundles = bundles[1:]
    started = time.time()
    for bundle, checkpoint in bundles:
        for part in args.parts:
            found = settings(args, bundle, checkpoint)
            result = {
                "encode": vision.measure,
                "captions": lambda found: captions(args, found),
                "first-token": first_token.measure,
                "language-model": language_model.measure,
                "operations": operations,
            }[part](found)
            for who, why in result["failed"].items():
                progress(f"{who} did not run: {why}")
            date = time.strftime("%Y-%m-%d")
            save(args.out, result, {"date": date, "machine": machine(args.qbridge), "versions": versions()})
    progress(f"measured in {(time.time() - started) / 60:.1f} minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qbridge", type=Path, required=True)
    parser.add_argument("--demo", type=Path, required=True, help="the demo's bundle")
    parser.add_argument("--work", type=Path, required=True, help="where what takes long to make is kept")
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--rounds", type=int, help="[default: 5, of --quick 1]")
    parser.add_argument("--quick", action="store_true", help="minutes: one round, small batches, no full report")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--subjects", nargs="+", choices=["demo", "full-size"], default=["demo", "full-size"])
    parser.add_argument("--largest-batch", type=int, default=16, help="of pictures that are encoded at once")
    parser.add_argument("--without", nargs="*", default=[], help="who is left out, such as 'PyTorch bf16'")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table anew")
    parser.add_argument("--out", type=Path, help="directory of the raw runs [default: docs/performance, of --quick --work]")
    parser.add_argument("--report", type=Path, help="[default: docs/performance.md, of --quick standard output]")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.out = args.out or (args.work / "quick" if args.quick else DOCS / "performance")
    args.report = args.report or (None if args.quick else DOCS / "performance.md")
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.table:
        measure(args)
    text = table.render(args.out)
    if args.report:
        table.insert(args.report, text)
    print(text)


if __name__ == "__main__":
    main()
