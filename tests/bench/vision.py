"""From pixels to the soft prompt on a CPU: qbridge beside PyTorch and ONNX Runtime, in f32, bf16 and 8 bits.

    python tests/bench/vision.py --qbridge target/release/qbridge --bundle BUNDLE [--onnx DIR] [--rounds 5]

Every one encodes the same picture with the same weights, `--batch` copies at once, one number after the other; the
first warms up. A round is one process of each in turn, because a shared machine's speed drifts: only the ratios of
one round count. Prints the raw runs as JSON, with the cosine of each one's soft prompt to PyTorch's in f32 and the peak
memory of its process. ONNX's files are made where `--onnx` has none. Part of `make bench`.
"""

import argparse
import json
import math
import shutil
import struct
import tempfile
from pathlib import Path

from common import PICTURES, Failed, median, progress, python, run

QBRIDGE = {"qbridge f32": "f32", "qbridge int8": "int8"}
PEERS = {
    "PyTorch f32": "torch-f32",
    "PyTorch bf16": "torch-bf16",
    "ONNX Runtime f32": "onnx-f32",
    "ONNX Runtime int8": "onnx-int8",
}


def export(bundle: Path, onnx: Path) -> None:
    """Writes ONNX's files, unless they are there."""
    if (onnx / "int8.onnx").exists():
        return
    progress(f"exporting {bundle.name} to ONNX")
    onnx.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{onnx.name}.", dir=onnx.parent))
    try:
        run(python("reference.py", "--bundle", bundle, "--export", partial))
        partial.rename(onnx)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def commands(args: argparse.Namespace, out: Path) -> dict[str, tuple[list, Path]]:
    """The command of each contestant, and where it writes its soft prompt."""
    found = {}
    for who, kind in QBRIDGE.items():
        rows = out / f"{kind}.safetensors"
        command = [args.qbridge, "encode", args.bundle, args.picture, "--vision", kind, "--timings", "--out", rows]
        found[who] = [*command, "--batch", args.batch], rows
    for who, kind in PEERS.items():
        rows = out / f"{kind}.npy"
        command = python("reference.py", "--bundle", args.bundle, "--kind", kind, "--picture", args.picture, "--out", rows)
        found[who] = [*command, "--onnx", args.onnx, "--batch", args.batch], rows
    return {who: command for who, command in found.items() if who not in args.without}


def measure(args: argparse.Namespace) -> dict:
    failed: dict[str, str] = {}
    if not {"ONNX Runtime f32", "ONNX Runtime int8"} <= set(args.without):
        try:
            export(args.bundle, args.onnx)
        except Failed as error:
            failed["ONNX Runtime"] = str(error)
    with tempfile.TemporaryDirectory() as directory:
        contestants = commands(args, Path(directory))
        rounds = []
        for number in range(args.rounds):
            round = {}
            for who, (command, _) in contestants.items():
                if who in failed or (who.startswith("ONNX") and "ONNX Runtime" in failed):
                    continue
                progress(f"{args.bundle.name}, round {number + 1} of {args.rounds}: {who}")
                try:
                    ran = run(command)
                except Failed as error:
                    failed[who] = str(error)
                    continue
                round[who] = {
                    # The first one warms up.
                    "runs": ran.lines()[1:],
                    "process_seconds": ran.seconds,
                    "cpu_seconds": ran.cpu_seconds,
                    "peak_mib": ran.peak_mib,
                }
            rounds.append(round)
        expected = rows(contestants.get("PyTorch f32"))
        cosines = {who: cosine(found, expected) for who, made in contestants.items() if (found := rows(made)) and expected}
    return {"part": "encode", "subject": args.bundle.name, "rounds": rounds, "cosines": cosines, "failed": failed}


def rows(made: tuple[list, Path] | None) -> list[float] | None:
    """The first picture's soft prompt, flat."""
    if made is None or not made[1].exists():
        return None
    data = made[1].read_bytes()
    if made[1].suffix == ".npy":
        start = 10 + struct.unpack("<H", data[8:10])[0]
        return list(struct.unpack(f"<{(len(data) - start) // 4}f", data[start:]))
    start = 8 + struct.unpack("<Q", data[:8])[0]
    tensor = json.loads(data[8:start])["soft_prompt"]
    begin, end = tensor["data_offsets"]
    one = (end - begin) // tensor["shape"][0]
    return list(struct.unpack(f"<{one // 4}f", data[start + begin : start + begin + one]))


def cosine(a: list[float], b: list[float]) -> float:
    product = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def seconds(result: dict, batch: int, what: str = "forward") -> list[dict[str, float]]:
    """Of each round and contestant, the median seconds of a picture."""
    rounds = []
    for round in result["rounds"]:
        found = {}
        for who, ran in round.items():
            runs = [line[what] / batch for line in ran["runs"] if line["batch"] == batch]
            if runs:
                found[who] = median(runs)
        rounds.append(found)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qbridge", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--onnx", type=Path, help="directory of ONNX's files [default: a temporary one]")
    parser.add_argument("--picture", type=Path, default=PICTURES / "dog.png")
    parser.add_argument("--batch", default="1,1,1,4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], help="who is left out, such as 'PyTorch bf16'")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        args.onnx = args.onnx or Path(directory) / "onnx"
        print(json.dumps(measure(args)))


if __name__ == "__main__":
    main()
