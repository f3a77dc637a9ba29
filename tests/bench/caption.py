"""`qbridge caption` beside transformers, on the same pictures, batch size, threads and minutes.

    python tests/bench/caption.py --qbridge target/release/qbridge --bundle BUNDLE [--pictures 64] [--rounds 5]
    python tests/bench/caption.py ... --bundle FULL_SIZE --checkpoint DIR --pictures 4 --batch 4 --tokens 16

A round is one process of each in turn, because a shared machine's speed drifts: only the ratios of one round count.
What is timed is the way from picture files to captions (reading, decoding, ViT, Q-Former, prefill, greedy decoding),
without loading; the peak of memory is that of the whole process, and CPU seconds are those of all threads, qbridge's with
loading. transformers captions `--batch` pictures at once (`answers.py` says with what); qbridge runs with as many slots.
`--tokens` makes every caption as long. Prints the raw runs as JSON. Part of `make bench`.
"""

import argparse
import json
import tempfile
from pathlib import Path

from common import Failed, progress, python, run

QBRIDGE = {"qbridge f32": "f32", "qbridge int8": "int8"}
PEERS = {"PyTorch f32": "float32", "PyTorch bf16": "bfloat16"}


def qbridge(args: argparse.Namespace, kind: str, pictures: Path, out: Path) -> dict:
    command = [args.qbridge, "caption", args.bundle, pictures, "--out", out, "--overwrite", "--json", "--quiet"]
    command += ["--vision", kind, "--slots", args.batch, "--max-tokens", args.tokens or 32]
    command += ["--min-tokens", args.tokens] if args.tokens else []
    ran = run(command)
    captions = [json.loads(line)["caption"] for line in out.read_text().splitlines()]
    seconds = ran.lines()[-1]["seconds"]
    return {"seconds": seconds, "cpu_seconds": ran.cpu_seconds, "captions": captions, "peak_mib": ran.peak_mib}


def transformers(args: argparse.Namespace, dtype: str, pictures: Path) -> dict:
    command = python("answers.py", "--bundle", args.bundle, "--pictures", pictures, "--dtype", dtype)
    command += ["--batch", args.batch, "--max-tokens", args.tokens or 32, "--min-tokens", args.tokens]
    command += ["--checkpoint", args.checkpoint] if args.checkpoint else []
    ran = run(command)
    return ran.lines()[-1] | {"peak_mib": ran.peak_mib}


def measure(args: argparse.Namespace) -> dict:
    failed, rounds = {}, []
    with tempfile.TemporaryDirectory() as directory:
        pictures = Path(directory) / "pictures"
        pictures.mkdir()
        run(python("pictures.py", pictures, args.pictures))
        out = Path(directory) / "captions.jsonl"
        contestants = {who: lambda kind=kind: qbridge(args, kind, pictures, out) for who, kind in QBRIDGE.items()}
        contestants |= {who: lambda dtype=dtype: transformers(args, dtype, pictures) for who, dtype in PEERS.items()}
        for number in range(args.rounds):
            round = {}
            for who, caption in contestants.items():
                if who in failed or who in args.without:
                    continue
                progress(f"{args.bundle.name}, captions, round {number + 1} of {args.rounds}: {who}")
                try:
                    round[who] = caption()
                except Failed as error:
                    failed[who] = str(error)
            rounds.append(round)
    result = {"part": "captions", "subject": args.bundle.name, "pictures": args.pictures, "batch": args.batch}
    return result | {"tokens": args.tokens, "rounds": rounds, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qbridge", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="what the bundle was converted from")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], help="who is left out, such as 'PyTorch bf16'")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
