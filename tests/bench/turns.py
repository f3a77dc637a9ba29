"""What a kept KV cache saves, and what a long prompt costs those who are being answered.

    qbridge serve BUNDLE --slots 4
    python tests/bench/turns.py --url http://127.0.0.1:8080/v1 --model qbridge-demo --picture demo/pictures/dog.png

The second turn of a chat, by the time to its first token, with `cache_prompt` true and false in turn; then the
longest and the median time between two tokens of a stream, alone and while a prompt of some 2,000 tokens comes in.
"""

import argparse
import base64
import json
import statistics
import threading
import time
import urllib.request
from pathlib import Path

SYSTEM = "You look at drawings and say what they show, in few words and without guessing. " * 20
LONG = "The quick brown fox jumps over the lazy dog. " * 190


def stream(args, body):
    """Seconds at which the pieces of an answer came, and their text."""
    data = json.dumps({"model": args.model, "temperature": 0, "stream": True} | body).encode()
    request = urllib.request.Request(f"{args.url}/chat/completions", data, {"content-type": "application/json"})
    started, times, text = time.perf_counter(), [], ""
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            piece = json.loads(line[6:])["choices"][0]["delta"].get("content")
            if piece:
                times.append(time.perf_counter() - started)
                text += piece
    return times, text


def second_turn(args, uri, round):
    picture = {"type": "image_url", "image_url": {"url": uri}}
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]},
    ]
    _, first = stream(args, {"messages": messages, "max_tokens": 16})
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": f"Is it red? ({round})"}]
    body = {"messages": messages, "max_tokens": 4}
    without = stream(args, body | {"cache_prompt": False})[0][0]
    return stream(args, body)[0][0], without


def gaps(args, beside):
    """Seconds between the tokens of a stream, with a long prompt in the middle of it or not."""
    body = {"messages": [{"role": "user", "content": "Tell a long story."}], "max_tokens": 150, "min_tokens": 150}
    long = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1, "cache_prompt": False}
    other = threading.Timer(0.5, lambda: stream(args, long))
    if beside:
        other.start()
    times, _ = stream(args, body)
    if beside:
        other.join()
    return [later - sooner for sooner, later in zip(times, times[1:])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    uri = "data:image/png;base64," + base64.b64encode(args.picture.read_bytes()).decode()
    ratios = []
    for round in range(args.rounds):
        kept, fresh = second_turn(args, uri, round)
        ratios.append(kept / fresh)
        print(f"second turn, first token: {kept:.3f} s kept, {fresh:.3f} s computed, ratio {ratios[-1]:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")
    for round in range(args.rounds):
        for beside in (False, True):
            found = gaps(args, beside)
            where = "beside a long prompt" if beside else "alone"
            print(f"between tokens {where}: median {statistics.median(found):.3f} s, longest {max(found):.3f} s")


if __name__ == "__main__":
    main()
