"""How fast a server embeds, scores and ranks, one request at a time, eight at once, and in one request.

    qbridge serve clip --port 8080
    python tests/bench/retrieval.py http://127.0.0.1:8080/v1 clip demo/pictures [REQUESTS]

Every picture is new to the server unless the line says otherwise: bytes behind a file's end, which no decoder reads, make
another file of it. Prints requests, inputs a second, and the median and 95th percentile of a request's time.
"""

import base64
import itertools
import json
import statistics
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CLIENTS = 8
WORDS = "a red blue small dog cat rocket banana drawing of the on and with".split()
fresh = itertools.count(time.time_ns())


class Bench:
    def __init__(self, url, model, directory, requests):
        self.url, self.model, self.requests = url, model, requests
        self.files = [path.read_bytes() for path in sorted(Path(directory).glob("*.png"))]

    def post(self, path, **fields):
        body = json.dumps({"model": self.model, **fields}).encode()
        request = urllib.request.Request(self.url + path, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)

    def picture(self, number=None):
        tail = next(fresh) if number is None else number
        file = self.files[tail % len(self.files)] + tail.to_bytes(16, "little")
        return {"image": "data:image/png;base64," + base64.b64encode(file).decode()}

    def text(self):
        number = next(fresh)
        return " ".join(WORDS[number // len(WORDS) ** i % len(WORDS)] for i in range(5)) + f" {number % 1000}"

    def run(self, name, clients, inputs, ask):
        times = []

        def timed(_):
            started = time.perf_counter()
            ask()
            times.append(time.perf_counter() - started)

        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(timed, range(self.requests)))
        took = time.perf_counter() - started
        times.sort()
        p95 = times[min(len(times) - 1, int(len(times) * 0.95))]
        print(
            f"{name:44} {self.requests:5} requests {self.requests * inputs / took:9.1f} inputs/s"
            f"  p50 {1e3 * statistics.median(times):8.1f} ms  p95 {1e3 * p95:8.1f} ms",
            flush=True,
        )


def main():
    requests = int(sys.argv[4]) if len(sys.argv) > 4 else 64
    bench = Bench(sys.argv[1], sys.argv[2], sys.argv[3], requests)
    embed = lambda inputs: bench.post("/embeddings", input=inputs, encoding_format="base64")  # noqa: E731
    for clients in (1, CLIENTS):
        bench.run(f"a text, {clients} clients", clients, 1, lambda: embed(bench.text()))
    for clients in (1, CLIENTS):
        bench.run(f"a new picture, {clients} clients", clients, 1, lambda: embed(bench.picture()))
    bench.run("a picture seen before, 1 client", 1, 1, lambda: embed(bench.picture(7)))
    bench.run("a picture seen before, 8 clients", CLIENTS, 1, lambda: embed(bench.picture(7)))
    bench.requests = max(1, requests // 16)
    bench.run("64 texts in a request", 1, 64, lambda: embed([bench.text() for _ in range(64)]))
    bench.run("32 new pictures in a request", 1, 32, lambda: embed([bench.picture() for _ in range(32)]))
    documents = [bench.picture(number) for number in range(100)]
    embed(documents)
    for top_k in (None, 0, 16):
        fields = {} if top_k is None else {"itm_top_k": top_k}
        name = f"100 pictures seen before, ranked, {fields or 'as by default'}"
        rank = lambda: bench.post("/rerank", query=bench.text(), documents=documents, **fields)  # noqa: B023, E731
        try:
            bench.run(name, 1, 100, rank)
        except urllib.error.HTTPError:
            print(f"{name}: not by this model")


main()
