"""Prefill and decoding of qbridge's engine beside llama.cpp's own bench program, on the same GGUF and threads.

    python tests/bench/language_model.py --qbridge target/release/qbridge --bundle BUNDLE --llama-bench PATH [--rounds 5]

A round is one process of each in turn. Both read a prompt of `--rows` rows and decode `--tokens` tokens of one answer,
with fused attention and a KV cache in f16, after a run that does not count; who is first in one round is last in the
next. `scripts/llama-bench.sh` builds the program. Prints the raw runs as JSON. Part of `make bench`.
"""

import argparse
import json
import os
from pathlib import Path

from common import Failed, progress, run


def qbridge(args: argparse.Namespace) -> dict:
    command = [args.qbridge, "bench", args.bundle, "--only", "language-model", "--json", "--slots", 1]
    command += ["--rows", args.rows, "--tokens", args.tokens, "--repeat", args.repeat, "--warm-up", 1]
    ran = run([*command, "--threads", args.threads])
    prefill, decode = json.loads(ran.output)["stages"]
    return {"prefill": prefill["per_second"], "decode": decode["per_second"], "peak_mib": ran.peak_mib}


def llama_bench(args: argparse.Namespace, gguf: Path) -> dict:
    command = [args.llama_bench, "-m", gguf, "-p", args.rows, "-n", args.tokens, "-r", args.repeat, "-fa", 1]
    ran = run([*command, "-t", args.threads, "-o", "json"])
    tests = json.loads(ran.output)
    # Nanoseconds of each run; as the other one's, the median of them.
    rate = {test["n_gen"] == 0: median_rate(test) for test in tests}
    # Built from a package and not from its repository it does not know its number.
    build = {"build": tests[0]["build_number"]} if tests[0]["build_number"] else {}
    return {"prefill": rate[True], "decode": rate[False], "peak_mib": ran.peak_mib} | build


def median_rate(test: dict) -> float:
    rates = sorted(test["samples_ts"])
    return rates[len(rates) // 2] if len(rates) % 2 else (rates[len(rates) // 2 - 1] + rates[len(rates) // 2]) / 2


def measure(args: argparse.Namespace) -> dict:
    import tomllib

    manifest = tomllib.loads((args.bundle / "bundle.toml").read_text())
    gguf = args.bundle / manifest["files"]["llm"]["path"]
    contestants = {"qbridge": lambda: qbridge(args)}
    failed, rounds = {}, []
    if args.llama_bench:
        contestants["llama-bench"] = lambda: llama_bench(args, gguf)
    else:
        failed["llama-bench"] = "not there: scripts/llama-bench.sh builds it"
    for number in range(args.rounds):
        round = {}
        order = list(contestants.items())
        for who, bench in order if number % 2 == 0 else reversed(order):
            if who in failed:
                continue
            progress(f"{args.bundle.name}, language model, round {number + 1} of {args.rounds}: {who}")
            try:
                round[who] = bench()
            except (Failed, OSError) as error:
                failed[who] = str(error)
        rounds.append(round)
    result = {"part": "language model", "subject": args.bundle.name, "rows": args.rows, "tokens": args.tokens}
    return result | {"threads": args.threads, "rounds": rounds, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qbridge", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
