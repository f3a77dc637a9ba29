#!/usr/bin/env python3
"""Five beams beside greedy answers of the same length, on the same bundle, picture and minutes.

    python tests/bench/beams.py --qbridge target/release/qbridge --bundle BUNDLE --picture cat.png

Each round asks once greedily and once with beams, `--tokens` tokens each (`--min-tokens` keeps the answers from
ending), and takes the time after the first token from `--json`. The ratio is that of the beams to as many greedy
answers one after the other. Prints a Markdown table.
"""

import argparse
import json
import statistics
import subprocess


def decode_seconds(arguments, num_beams):
    command = [arguments.qbridge, "ask", "--json", "--num-beams", str(num_beams)]
    for flag in ("--max-tokens", "--min-tokens"):
        command += [flag, str(arguments.tokens)]
    command += [arguments.bundle, arguments.picture, arguments.question]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert answer["usage"]["completion_tokens"] == arguments.tokens, answer["usage"]
    return answer["timings"]["decode"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("qbridge", "bundle", "picture"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--question", default="What is in the picture?")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    ratios = []
    print(f"| round | greedy s | {arguments.beams} beams s | ratio to {arguments.beams} greedy |")
    print("|---|---|---|---|")
    for i in range(arguments.rounds):
        greedy = decode_seconds(arguments, 1)
        beams = decode_seconds(arguments, arguments.beams)
        ratios.append(beams / greedy / arguments.beams)
        print(f"| {i + 1} | {greedy:.2f} | {beams:.2f} | {ratios[-1]:.2f} |", flush=True)
    print(f"\nMedian ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
