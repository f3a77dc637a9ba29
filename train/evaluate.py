#!/usr/bin/env python3
"""Measure the demo on the test pictures, which are in a style that was never trained on.

    python train/evaluate.py --test DATA/test --server http://127.0.0.1:8080
    python train/evaluate.py --test DATA/test --torch --llm CHECKPOINT/MODEL.gguf

data.py writes the test pictures and questions.jsonl. With --server every question goes to a
running `qbridge serve` (standard library only); with --torch the same questions are answered by
the model as it was trained, from demo/bridge.safetensors or --bridge. Prints a Markdown table.
"""

import argparse
import base64
import json
import math
import random
import sys
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MEASURES = {
    "name": "what is this (exact name)",
    "yes/no": "yes / no",
    "how many": "how many (1 to 4)",
    "left/right": "is it on the left or on the right",
    "name on a side": "what is on the left / right (exact name)",
}
BRIDGE = Path(__file__).resolve().parent.parent / "demo" / "bridge.safetensors"


def read_questions(test: Path, limit: int | None) -> list[dict]:
    """Lines of questions.jsonl; with `limit` a fixed random choice of that many."""
    questions = [json.loads(line) for line in (test / "questions.jsonl").read_text().splitlines()]
    if limit is not None and limit < len(questions):
        questions = random.Random(0).sample(questions, limit)
    return questions


def plain(answer: str) -> str:
    """An answer without case, outer space and full stop."""
    return answer.strip().rstrip(".").lower()


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score interval)."""
    z = 1.96
    share = right / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)


def table(questions: list[dict], right: list[bool]) -> str:
    """The Markdown table: a line for each measure."""
    tally = defaultdict(list)
    for question, ok in zip(questions, right):
        tally[question["measure"]].append(ok)
    lines = ["| question | right | of | share | 95 % interval |", "|---|---|---|---|---|"]
    for measure, text in MEASURES.items():
        if results := tally.get(measure):
            low, high = wilson(sum(results), len(results))
            share = sum(results) / len(results)
            lines.append(f"| {text} | {sum(results)} | {len(results)} | {share:.1%} | {low:.1%} to {high:.1%} |")
    return "\n".join(lines)


class Server:
    """The OpenAI chat completions API of a running `qbridge serve`."""

    def __init__(self, url: str, key: str | None, timeout: float):
        self.url, self.timeout = url.rstrip("/"), timeout
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self.model = self._call("/v1/models")["data"][0]["id"]

    def _call(self, path: str, body: dict | None = None) -> dict:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, self.headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return json.load(response)

    def ask(self, picture: Path, question: str) -> str:
        uri = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
        content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": question}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 16}
        return self._call("/v1/chat/completions", body)["choices"][0]["message"]["content"]


def through_server(questions: list[dict], test: Path, server: Server, parallel: int) -> list[str]:
    """The server's answers, asked `parallel` at a time."""
    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(lambda q: server.ask(test / q["picture"], q["question"]), questions))


def through_torch(questions: list[dict], test: Path, gguf: Path, bridge_file: Path, device: str) -> list[bool]:
    """Whether the model's greedy answer is the wanted one, token for token, for each question.

    That is so where every token of the wanted answer is the likeliest after those before it, so
    one pass over question and answer tells; nothing has to be generated."""
    import torch

    from features import feature_file, read_scenes
    from model import IGNORED, Bridge, LanguageModel

    language_model = LanguageModel(gguf, torch.device(device), torch.bfloat16)
    bridge = Bridge(language_model.embeddings.shape[1]).to(device).eval()
    bridge.load(bridge_file)
    features = feature_file(test, len(read_scenes(test)), "r")
    by_picture = defaultdict(list)
    for number, question in enumerate(questions):
        by_picture[int(Path(question["picture"]).stem)].append(number)
    right = [False] * len(questions)
    pictures = sorted(by_picture)
    with torch.no_grad():
        for start in range(0, len(pictures), 16):
            part = pictures[start : start + 16]
            soft = bridge(torch.stack([torch.from_numpy(features[p].astype("float32")) for p in part]).to(device))
            packed = language_model.pack([[(questions[n]["question"], questions[n]["answer"]) for n in by_picture[p]] for p in part])
            _, likeliest = language_model.loss(soft, packed)
            wrong = torch.zeros_like(packed.targets, dtype=torch.bool)
            wrong[packed.targets != IGNORED] = ~likeliest
            for row, picture in enumerate(part):
                for segment, number in enumerate(by_picture[picture]):
                    right[number] = not wrong[row][packed.segments[row] == segment].any().item()
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", type=Path, required=True, help="the test directory that data.py wrote")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--server", help="base address of a running qbridge serve")
    way.add_argument("--torch", action="store_true", help="answer with torch instead")
    parser.add_argument("--key", help="API key of the server")
    parser.add_argument("--parallel", type=int, default=4, help="requests to the server at a time")
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait for an answer of the server")
    parser.add_argument("--llm", type=Path, help="with --torch: the GGUF, as demo/make_checkpoint.py or a bundle has it")
    parser.add_argument("--bridge", type=Path, default=BRIDGE, help="with --torch: the trained bridge")
    parser.add_argument("--device", default="cpu", help="with --torch: cpu, or cuda")
    parser.add_argument("--limit", type=int, help="ask only this many questions, chosen at random once and for all")
    parser.add_argument("--answers", type=Path, help="with --server: write every question with its answer here, as JSON lines")
    arguments = parser.parse_args()

    questions = read_questions(arguments.test, arguments.limit)
    if arguments.torch:
        if arguments.llm is None:
            parser.error("--torch needs --llm")
        right = through_torch(questions, arguments.test, arguments.llm, arguments.bridge, arguments.device)
    else:
        server = Server(arguments.server, arguments.key, arguments.timeout)
        answers = through_server(questions, arguments.test, server, arguments.parallel)
        right = [plain(answer) == plain(question["answer"]) for answer, question in zip(answers, questions)]
        if arguments.answers:
            lines = [json.dumps({**question, "given": answer, "right": ok}) for question, answer, ok in zip(questions, answers, right)]
            arguments.answers.write_text("\n".join(lines) + "\n")
    print(table(questions, right))
    return 0


if __name__ == "__main__":
    sys.exit(main())
