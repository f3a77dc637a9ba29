"""The time to an answer's first token: from a program's start, for a picture never seen, one seen before, a second turn.

    python tests/bench/first_token.py --qbridge target/release/qbridge --bundle BUNDLE [--rounds 5]

`start` is a whole process, `qbridge ask` beside a Python that does the same with transformers, from loading to one token.
The others ask a running `qbridge serve`, and transformers in a process that has loaded and answered once. transformers
keeps nothing of a picture or of a conversation, so its first token after a picture never seen is what the others are
compared with too. The second turn's prompt holds the first question, its answer and a picture. Prints the raw runs as
JSON. Part of `make bench`.
"""

import argparse
import base64
import json
import re
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from common import PICTURES, Failed, environment, progress, python, run
from turns import stream

QUESTION = "What is in the picture?"
KINDS = {"qbridge f32": "f32", "qbridge int8": "int8"}
PEERS = {"PyTorch f32": "float32", "PyTorch bf16": "bfloat16"}
READY_SECONDS = 300


@contextmanager
def server(args: argparse.Namespace, kind: str, *more):
    """A `qbridge serve`, and its URL."""
    command = [args.qbridge, "serve", args.bundle, "--port", 0, "--slots", 1, "--vision", kind, "--no-ui", *more]
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment()
    )
    timer = threading.Timer(READY_SECONDS, process.kill)
    timer.start()
    try:
        # One that ends or is killed ends its lines too.
        lines = iter(process.stderr.readline, "")
        found = next((match for line in lines if (match := re.search(r"serving .* on (http\S+)", line))), None)
        timer.cancel()
        if found is None:
            raise Failed(f"no server of {args.bundle.name} within {READY_SECONDS} s")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield process.pid, found.group(1)
    finally:
        timer.cancel()
        process.terminate()
        process.wait()


def peak_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text).group(1)) / 1024


def asked(args: argparse.Namespace, kind: str, pictures: list[Path]) -> dict:
    """Seconds to the first token of a server; the first picture warms up."""
    with server(args, kind) as (pid, url):
        args.url, args.model = url, args.bundle.name
        # Others in their pixels too: of equal ones the prompt's rows would be equal, and kept.
        for picture in pictures:
            uri = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
            content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": QUESTION}]
            messages = [{"role": "user", "content": content}]
            never, first = stream(args, {"messages": messages, "max_tokens": 16, "min_tokens": 16})
            # Nothing but the picture is kept: the prompt is computed anew.
            seen, _ = stream(args, {"messages": messages, "max_tokens": 2, "min_tokens": 2, "cache_prompt": False})
            messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "Is it an animal?"}]
            second, _ = stream(args, {"messages": messages, "max_tokens": 2, "min_tokens": 2})
            found = {"never seen": never[0], "seen before": seen[0], "second turn": second[0]}
        return found | {"server_peak_mib": peak_mib(pid)}


def prompt_tokens(args: argparse.Namespace) -> int:
    """Tokens beside the picture's rows."""
    command = [args.qbridge, "ask", args.bundle, PICTURES / "dog.png", QUESTION, "--max-tokens", 1, "--json"]
    usage = run(command).lines()[-1]["usage"]
    return usage["prompt_tokens"] - usage["image_tokens"]


def transformers(args: argparse.Namespace, dtype: str, pictures: Path, tokens: int) -> tuple[list[float], float]:
    """Seconds to the first token of each picture, and those of the whole process."""
    command = python("answers.py", "--bundle", args.bundle, "--pictures", pictures, "--dtype", dtype, "--first-token")
    command += ["--checkpoint", args.checkpoint, "--prompt-tokens", tokens] if args.checkpoint else []
    ran = run(command)
    return ran.lines()[-1]["first_token"], ran.seconds


def measure(args: argparse.Namespace) -> dict:
    failed, rounds = {}, [{} for _ in range(args.rounds)]
    tokens = prompt_tokens(args)
    with tempfile.TemporaryDirectory() as directory:
        one, some = Path(directory) / "one", Path(directory) / "some"
        for pictures, n in ((one, 1), (some, 3)):
            pictures.mkdir()
            run(python("pictures.py", pictures, n))
        for number, round in enumerate(rounds):
            progress(f"{args.bundle.name}, first token, round {number + 1} of {args.rounds}")
            for who, kind in KINDS.items():
                command = [args.qbridge, "ask", args.bundle, one / "0000.png", QUESTION, "--max-tokens", 1]
                ran = run([*command, "--vision", kind])
                round[who] = {"start": ran.seconds} | asked(args, kind, sorted(some.iterdir())[:2])
            for who, dtype in PEERS.items():
                if who in failed or who in args.without:
                    continue
                try:
                    (_, *seconds), whole = transformers(args, dtype, some, tokens)
                except Failed as error:
                    failed[who] = str(error)
                    continue
                # Of the whole process, what came after the first picture is not start.
                round[who] = {"start": whole - sum(seconds), "never seen": sorted(seconds)[len(seconds) // 2]}
    return {"part": "first token", "subject": args.bundle.name, "rounds": rounds, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qbridge", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="what the bundle was converted from")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], help="who is left out, such as 'PyTorch bf16'")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
