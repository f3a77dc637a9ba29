"""What guessing ahead brings: tokens a second with and without `--prompt-lookup`.

    python tests/bench/lookup.py --qbridge target/release/qbridge --bundle BUNDLE [--ahead 7 15] [--rounds 5]

Each of two texts is answered by a server of each setting in turn: a list that is to be written once more (what it guesses is
nearly always right), and a story (next to nothing to guess). What is timed is from the first token to the last; both answers are
as long. Prints the rounds, the median of their ratios to no guessing, and which answers are not the same.
"""

import argparse
import json
import statistics
import urllib.request
from pathlib import Path

from first_token import server

WORDS = "apple river candle window garden silver monkey bottle carpet planet hammer basket"
TEXTS = {
    "once more": "Write this list once more, word for word:\n" + "".join(f"{n}. {word}\n" for n, word in enumerate(WORDS.split(), 1)),
    "a story": "Tell a long story about a fisherman and his daughter.",
}


def answer(args: argparse.Namespace, text: str) -> tuple[float, str]:
    """Tokens a second of decoding, and the answer."""
    body = {"model": args.model, "temperature": 0, "timings": True, "max_tokens": args.tokens, "min_tokens": args.tokens}
    body["messages"] = [{"role": "user", "content": text}]
    request = urllib.request.Request(f"{args.url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as found:
        found = json.load(found)
    return (args.tokens - 1) / found["timings"]["decode"], found["choices"][0]["message"]["content"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qbridge", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--ahead", type=int, nargs="+", default=[7, 15])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    args.model = args.bundle.name
    rates: dict[tuple[str, int], list[float]] = {}
    answers: dict[tuple[str, int], str] = {}
    for round in range(args.rounds):
        for ahead in [0, *args.ahead]:
            with server(args, "auto", "--prompt-lookup", ahead) as (_, args.url):
                answer(args, "Hello.")
                for name, text in TEXTS.items():
                    rate, answers[name, ahead] = answer(args, text)
                    rates.setdefault((name, ahead), []).append(rate)
                    print(f"round {round + 1}, {name}, {ahead} ahead: {rate:.1f} tokens/s", flush=True)
    for (name, ahead), found in rates.items():
        by = statistics.median(a / b for a, b in zip(found, rates[name, 0]))
        same = "same" if answers[name, ahead] == answers[name, 0] else "another"
        print(f"{name}, {ahead} ahead: {by:.2f} of no guessing, the {same} answer")


if __name__ == "__main__":
    main()
