"""Sends a running server thousands of mixed requests, a fifth of them broken or left, and looks for what they leave behind.

    python tests/soak.py http://127.0.0.1:8080/v1 qbridge-demo PID [REQUESTS] [CLIENTS]

Every answer about a picture must be the one that was given when nobody else was asking; afterwards no slot may be taken,
and the resident memory of process PID may have grown by 3 % at most since a third of the requests were done (Linux only).
3,000 requests by 8 clients where nothing is given. Start the server with `--image-cache 1`: pictures that were never seen
come all the time, and a larger cache would still be filling. Prints one JSON line.
"""

import base64
import collections
import http.client
import json
import random
import sys
import threading
import time
import urllib.parse
from pathlib import Path

PICTURES = Path(__file__).parent.parent / "demo/pictures"
NAMES = ["dog.png", "banana.png", "bicycle.png", "sunflower.png"]
QUESTIONS = ["What is this?", "Is there a banana?"]
GROWTH = 0.03


class Server:
    def __init__(self, base_url):
        self.host = urllib.parse.urlsplit(base_url).netloc

    def send(self, body):
        connection = http.client.HTTPConnection(self.host, timeout=300)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", "/v1/chat/completions", data, {"content-type": "application/json"})
        return connection

    def ask(self, body):
        """Status and parsed body."""
        connection = self.send(body)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        return response.status, answer

    def gauges(self):
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name.partition("{")[0]: float(value) for name, _, value in samples if "_bucket" not in name}


def resident(pid):
    """Bytes of memory that are not shared with files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon")


def image(data):
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}


class Soak:
    def __init__(self, base_url, model, pid, requests, clients):
        self.server, self.model, self.pid, self.requests, self.clients = Server(base_url), model, pid, requests, clients
        self.pictures = {name: (PICTURES / name).read_bytes() for name in NAMES}
        self.lock = threading.Lock()
        self.done = 0
        self.counts = collections.Counter()
        self.wrong = []
        self.resident = []

    def chat(self, *content, **fields):
        messages = [{"role": "user", "content": list(content)}]
        return {"model": self.model, "messages": messages, "temperature": 0, "max_completion_tokens": 24} | fields

    def about(self, name, question, **fields):
        return self.chat(image(self.pictures[name]), {"type": "text", "text": question}, **fields)

    def baseline(self):
        """What each question is answered when nobody else is asking."""
        self.expected = {}
        for name in NAMES:
            for question in QUESTIONS:
                status, answer = self.server.ask(self.about(name, question))
                assert status == 200, answer
                self.expected[name, question] = answer["choices"][0]["message"]["content"]

    def whole(self, draw):
        key = draw.choice(NAMES), draw.choice(QUESTIONS)
        # The bytes behind a picture's end change what it is to a cache, and not what is seen.
        tail = draw.randbytes(8) if draw.random() < 0.3 else b""
        picture = image(self.pictures[key[0]] + tail)
        status, answer = self.server.ask(self.chat(picture, {"type": "text", "text": key[1]}))
        text = answer["choices"][0]["message"]["content"] if status == 200 else answer
        return text == self.expected[key] or (key, text)

    def stream(self, draw):
        key = draw.choice(NAMES), draw.choice(QUESTIONS)
        connection = self.server.send(self.about(*key, stream=True))
        text = ""
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                [choice] = json.loads(line[6:])["choices"]
                text += choice["delta"].get("content", "")
        connection.close()
        return text == self.expected[key] or (key, text)

    def text(self, draw):
        body = self.chat({"type": "text", "text": f"Say {draw.randrange(1000)}."}, max_completion_tokens=8)
        status, answer = self.server.ask(body)
        return status == 200 or answer

    def several(self, draw):
        pictures = [image(self.pictures[name]) for name in draw.sample(NAMES, 3)]
        status, answer = self.server.ask(self.chat(*pictures, {"type": "text", "text": "What is this?"}))
        rows = answer["usage"]["prompt_tokens_details"]["image_tokens"] if status == 200 else answer
        return rows == 96 or rows

    def broken(self, draw):
        picture = self.pictures["dog.png"]
        long = {"type": "text", "text": "dog " * 20_000}
        body, expected = draw.choice(
            [
                (b"{", 400),
                (b"\xff" * 1000, 400),
                (self.about("dog.png", "?", no_such_field=1), 400),
                (self.about("dog.png", "?", temperature=9), 400),
                (self.about("dog.png", "?", model="other"), 404),
                (self.chat(image(picture[: draw.randrange(1, 60)])), 400),
                (self.chat(image(draw.randbytes(200))), 400),
                (self.chat(long), 400),
                (self.chat(*[image(picture)] * 17), 400),
            ]
        )
        status, answer = self.server.ask(body)
        return status == expected or (expected, status, answer)

    def left(self, draw):
        """The client goes away: while it sends, while it waits, or in the middle of a stream."""
        body = self.about(draw.choice(NAMES), "What is this?", max_completion_tokens=400, min_tokens=400, stream=True)
        moment = draw.randrange(3)
        if moment == 0:
            connection = http.client.HTTPConnection(self.server.host, timeout=300)
            data = json.dumps(body).encode()
            connection.putrequest("POST", "/v1/chat/completions")
            connection.putheader("content-type", "application/json")
            connection.putheader("content-length", str(len(data)))
            connection.endheaders(data[: len(data) // 2])
        elif moment == 1:
            connection = self.server.send(body | {"stream": False})
            time.sleep(draw.random() * 0.3)
        else:
            connection = self.server.send(body)
            connection.getresponse().readline()
        connection.close()
        return True

    def work(self, seed):
        draw = random.Random(seed)
        kinds = [self.whole, self.stream, self.text, self.several, self.broken, self.left]
        while True:
            with self.lock:
                if self.done == self.requests:
                    return
                self.done += 1
                if self.done in (self.requests // 3, self.requests * 2 // 3):
                    self.resident.append(resident(self.pid))
            kind = draw.choices(kinds, [35, 25, 15, 5, 10, 10])[0]
            try:
                outcome = kind(draw)
            except Exception as error:
                outcome = repr(error)
            with self.lock:
                self.counts[kind.__name__] += 1
                if outcome is not True:
                    self.wrong.append((kind.__name__, outcome))

    def run(self):
        started = time.monotonic()
        self.baseline()
        threads = [threading.Thread(target=self.work, args=(seed,)) for seed in range(self.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # A step may be on its way.
        for _ in range(50):
            gauges = self.server.gauges()
            taken = gauges["qbridge_requests_running"] + gauges["qbridge_requests_waiting"]
            if taken == 0:
                break
            time.sleep(0.1)
        self.resident.append(resident(self.pid))
        growth = self.resident[-1] / self.resident[0] - 1
        report = {
            "requests": dict(self.counts),
            "seconds": round(time.monotonic() - started, 1),
            "wrong": len(self.wrong),
            "slots_taken": taken,
            "resident_mb": [round(bytes / 1e6, 1) for bytes in self.resident],
            "growth": round(growth, 4),
        }
        print(json.dumps(report))
        for wrong in self.wrong[:5]:
            print(wrong, file=sys.stderr)
        return not self.wrong and taken == 0 and growth <= GROWTH


def main():
    base_url, model, pid = sys.argv[1:4]
    requests, clients = (int(value) for value in (sys.argv[4:] + ["3000", "8"][len(sys.argv) - 4 :]))
    sys.exit(not Soak(base_url, model, int(pid), requests, clients).run())


main()
