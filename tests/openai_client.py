"""Checks a running server with OpenAI's own client, every answer validated against its schema.

    pip install -r tests/requirements.txt
    python tests/openai_client.py http://127.0.0.1:8080/v1 qbridge-demo [PICTURE [KIND=URL]...]

Prints a line for each check; exits with 1 at the first that fails.
"""

import base64
import json
import struct
import sys
import threading
import time
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import openai
import pydantic

QUESTION = "What is in the picture?"


def drawing():
    """A PNG of a red square on white, 64 x 64."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b""
    for y in range(64):
        rows += b"\0"
        for x in range(64):
            rows += b"\xff\0\0" if 16 <= x < 48 and 16 <= y < 48 else b"\xff\xff\xff"
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def data_uri(picture):
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def ask(url, text=QUESTION):
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def metrics(url):
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=30) as response:
        return response.read()


class Seen(pydantic.BaseModel):
    what: Literal["animal", "fruit", "thing"]
    count: int = pydantic.Field(ge=0, le=9)


class Weather(pydantic.BaseModel):
    """The weather of a place."""

    class Day(pydantic.BaseModel):
        number: int = pydantic.Field(ge=1, le=31)
        month: Literal["May", "June"]

    place: Literal["Ulm", "Bonn"]
    day: Day


class Relay:
    """A server that answers the first requests for chats by `statuses`, and hands the later ones on to `url`."""

    def __init__(self, url, statuses, headers):
        relay = self
        self.times = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                relay.times.append(time.monotonic())
                if statuses:
                    error = {"message": "later", "type": "server_error", "param": None, "code": "later"}
                    self.answer(statuses.pop(0), headers, json.dumps({"error": error}).encode())
                else:
                    with openai.DefaultHttpxClient() as client:
                        response = client.post(
                            url + self.path, content=body, headers={"content-type": "application/json"}, timeout=300
                        )
                    self.answer(response.status_code, {}, response.content)

            def answer(self, status, headers, body):
                self.send_response(status)
                for name, value in ({"content-type": "application/json", "content-length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Checks:
    def __init__(self, base_url, model, picture):
        self.client = openai.OpenAI(
            base_url=base_url, api_key="none", max_retries=0, timeout=300, _strict_response_validation=True
        )
        self.origin = base_url.removesuffix("/v1")
        self.model = model
        self.picture = data_uri(picture)
        self.request = {"model": model, "messages": ask(self.picture), "temperature": 0, "max_completion_tokens": 24}

    def create(self, **fields):
        return self.client.chat.completions.create(**(self.request | fields))

    def refused(self, kind, code, param, **fields):
        try:
            self.create(**fields)
        except openai.APIStatusError as error:
            assert type(error) is kind, f"{type(error)} is not {kind}"
            assert (error.code, error.param) == (code, param), f"{error.code} {error.param}"
            assert error.type in ("invalid_request_error", "server_error"), error.type
            assert error.request_id, "no x-request-id"
            return
        raise AssertionError(f"{fields} was not refused")

    def models(self):
        models = self.client.models.list().data
        assert [model.id for model in models].count(self.model) == 1, models
        assert self.client.models.retrieve(self.model) in models
        try:
            self.client.models.retrieve("no-such-model")
        except openai.NotFoundError as error:
            assert error.code == "model_not_found", error.code
        else:
            raise AssertionError("a model that is not there")

    def whole_answer(self):
        answer = self.create()
        assert answer.model == self.model and answer._request_id
        [choice] = answer.choices
        assert choice.message.content and choice.message.refusal is None
        assert choice.finish_reason in ("stop", "length")
        usage = answer.usage
        images = usage.prompt_tokens_details.image_tokens
        assert 0 < images < usage.prompt_tokens, usage
        assert 0 < usage.completion_tokens <= 24, usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
        return answer

    def text_alone(self):
        answer = self.create(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}])
        assert answer.usage.prompt_tokens_details.image_tokens == 0
        text = self.client.completions.create(model=self.model, prompt="Once upon a", max_tokens=4, temperature=0)
        assert text.usage.completion_tokens == 4 and text.choices[0].text, text

    def several_pictures(self):
        part = ask(self.picture)[0]["content"][0]
        content = [part, {"type": "text", "text": "and"}, part, {"type": "text", "text": QUESTION}]
        answer = self.create(messages=[{"role": "user", "content": content}])
        one = self.create().usage.prompt_tokens_details.image_tokens
        assert answer.usage.prompt_tokens_details.image_tokens == 2 * one, answer.usage

    def stream_that_is_left(self):
        with self.create(stream=True, max_completion_tokens=500, extra_body={"min_tokens": 500}) as stream:
            assert next(chunk for chunk in stream if chunk.choices[0].delta.content)
        assert self.create().choices[0].message.content

    def stream_equals_whole_answer(self):
        whole = self.create()
        for include_usage in (False, True):
            options = {"stream_options": {"include_usage": True}} if include_usage else {}
            chunks = list(self.create(stream=True, **options))
            assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
            if include_usage:
                last = chunks.pop()
                assert last.choices == [] and last.usage == whole.usage, last
            assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
            choices = [chunk.choices[0] for chunk in chunks]
            assert choices[0].delta.role == "assistant"
            assert all(choice.delta.role is None for choice in choices[1:])
            reasons = [choice.finish_reason for choice in choices]
            assert reasons == [None] * (len(choices) - 1) + [whole.choices[0].finish_reason], reasons
            assert not choices[-1].delta.content
            text = "".join(choice.delta.content or "" for choice in choices)
            assert text == whole.choices[0].message.content, text

    def conversation(self):
        messages = ask(self.picture) + [
            {"role": "assistant", "content": "A drawing."},
            {"role": "user", "content": "Of what?"},
        ]
        first = self.create(seed=1)
        later = self.create(messages=messages, seed=1)
        assert later.usage.prompt_tokens > first.usage.prompt_tokens

    def limits_and_stops(self):
        one = self.create(max_completion_tokens=1)
        assert (one.usage.completion_tokens, one.choices[0].finish_reason) == (1, "length"), one
        text = self.create().choices[0].message.content
        stopped = self.create(stop=text[2:4]).choices[0]
        assert stopped.message.content == text[: text.index(text[2:4])] and stopped.finish_reason == "stop", stopped
        same = {self.create(temperature=1, seed=7).choices[0].message.content for _ in range(2)}
        assert len(same) == 1, same

    def choices_and_logprobs(self):
        story = {"messages": [{"role": "user", "content": "Tell a story."}], "n": 3, "temperature": 1, "seed": 5}
        first = self.create(**story, logprobs=True, top_logprobs=2)
        again = self.create(**story)
        texts = [choice.message.content for choice in first.choices]
        assert texts == [choice.message.content for choice in again.choices], (first, again)
        assert [choice.index for choice in first.choices] == [0, 1, 2] and len(set(texts)) > 1, texts
        for choice in first.choices:
            told = choice.logprobs.content
            assert b"".join(bytes(token.bytes or []) for token in told).decode() == choice.message.content, choice
            assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in told), told
        with self.create(n=2, logprobs=True, stream=True) as stream:
            pieces = [(chunk.choices[0].index, chunk.choices[0].logprobs) for chunk in stream]
        assert {index for index, _ in pieces} == {0, 1} and any(told for _, told in pieces), pieces

    def json_of_a_schema(self):
        schema = {
            "type": "object",
            "properties": {"what": {"enum": ["animal", "fruit", "thing"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["what", "count"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "seen", "strict": True, "schema": schema}}
        for temperature in (0, 1.5):
            whole = self.create(response_format=form, temperature=temperature, seed=3, max_completion_tokens=60, n=2)
            for choice in whole.choices:
                assert choice.finish_reason == "stop", choice
                seen = json.loads(choice.message.content)
                assert seen.keys() == {"what", "count"} and seen["what"] in ("animal", "fruit", "thing"), seen
        with self.create(response_format=form, max_completion_tokens=60, stream=True) as stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert json.loads(text).keys() == {"what", "count"}, text

    def refusals(self):
        bad, url = openai.BadRequestError, "messages[0].content[0].image_url.url"
        self.refused(bad, "invalid_value", "temperature", temperature=3)
        self.refused(bad, "invalid_value", "messages", messages=[])
        self.refused(bad, "invalid_value", "n", n=100)
        self.refused(bad, "invalid_value", "top_logprobs", top_logprobs=3)
        self.refused(bad, "invalid_value", "logit_bias", logit_bias={"9999999": 1})
        path = "response_format.json_schema.schema"
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "no such type"}}}
        self.refused(bad, "invalid_value", path, response_format=form)
        self.refused(bad, "unknown_parameter", "no_such_field", extra_body={"no_such_field": 1})
        self.refused(bad, "remote_image_unsupported", url, messages=ask("https://example.com/dog.png"))
        self.refused(bad, "invalid_image", url, messages=ask("data:image/png;base64,*"))
        self.refused(openai.NotFoundError, "model_not_found", "model", model="no-such-model")
        large = ask("data:image/png;base64," + "A" * (28 << 20))
        self.refused(openai.APIStatusError, "image_too_large", url, messages=large)
        # Known only once the picture is decoded or the prompt is tokenized: still no stream.
        for stream in (False, True):
            self.refused(bad, "invalid_image", url, messages=ask(data_uri(b"no picture")), stream=stream)
            long = ask(self.picture, "dog " * 100_000)
            self.refused(bad, "context_length_exceeded", "messages", messages=long, stream=stream)

    def parsed_by_a_model_of_pydantic(self):
        whole = self.client.chat.completions.parse(**self.request | {"response_format": Seen, "max_completion_tokens": 60})
        assert isinstance(whole.choices[0].message.parsed, Seen), whole
        with self.client.chat.completions.stream(
            **self.request | {"response_format": Seen, "max_completion_tokens": 60}
        ) as stream:
            streamed = stream.get_final_completion()
        assert streamed.choices[0].message.parsed == whole.choices[0].message.parsed, streamed
        try:
            self.client.chat.completions.parse(**self.request | {"response_format": Seen, "max_completion_tokens": 3})
        except openai.LengthFinishReasonError:
            return
        raise AssertionError("an answer that was cut was parsed")

    def text_completions(self):
        create = self.client.completions.create
        request = {"model": self.model, "max_tokens": 4, "temperature": 0}
        texts = ["Once upon a", "The sky is"]
        alone = [create(prompt=text, **request).choices[0].text for text in texts]
        together = create(prompt=texts, **request)
        assert [choice.index for choice in together.choices] == [0, 1], together
        assert [choice.text for choice in together.choices] == alone, together
        assert together.usage.completion_tokens == 8, together.usage
        many = create(prompt=texts, **request | {"n": 2, "temperature": 1, "seed": 1})
        assert [choice.index for choice in many.choices] == [0, 1, 2, 3], many
        streamed = {}
        # OpenAI's own pieces of a text have no finish_reason before the last either, which its schema does not allow.
        lenient = openai.OpenAI(base_url=self.client.base_url, api_key="none", max_retries=0)
        for chunk in lenient.completions.create(prompt=texts, stream=True, **request):
            for choice in chunk.choices:
                streamed[choice.index] = streamed.get(choice.index, "") + choice.text
        assert [streamed[0], streamed[1]] == alone, streamed
        root = self.client.with_options(base_url=self.origin)
        tokens = root.post("/tokenize", body={"prompt": texts[0]}, cast_to=object)["tokens"]
        for prompt in (tokens, [tokens]):
            assert create(prompt=prompt, **request).choices[0].text == alone[0]
        try:
            create(prompt=[10**7], **request)
        except openai.BadRequestError as error:
            assert error.param == "prompt" and "vocabulary" in error.message, error
        else:
            raise AssertionError("a token that is not in the vocabulary was taken")

    def classes_of_errors(self):
        for call, code in [
            (lambda: self.client.models.retrieve("no-such-model"), "model_not_found"),
            (lambda: self.client.moderations.create(input="a"), "not_found"),
        ]:
            try:
                call()
            except openai.NotFoundError as error:
                assert (error.status_code, error.code) == (404, code) and error.request_id, error
            else:
                raise AssertionError(f"{code} was not raised")
        try:
            self.client.embeddings.create(model=self.model, input="a")
        except openai.BadRequestError as error:
            assert (error.code, error.param) == ("model_not_supported", "model"), error
        else:
            raise AssertionError("a language model gave embeddings")
        nobody = self.client.with_options(base_url="http://127.0.0.1:9/v1", timeout=5)
        self.raises(openai.APIConnectionError, nobody)
        self.raises(openai.APITimeoutError, self.client.with_options(timeout=0.01))
        for status, kind in [
            (401, openai.AuthenticationError),
            (403, openai.PermissionDeniedError),
            (404, openai.NotFoundError),
            (408, openai.APIStatusError),
            (409, openai.ConflictError),
            (422, openai.UnprocessableEntityError),
            (429, openai.RateLimitError),
            (500, openai.InternalServerError),
            (503, openai.InternalServerError),
        ]:
            with Relay(self.origin, [status], {}) as relay:
                self.raises(kind, self.client.with_options(base_url=relay.url + "/v1"), code="later")

    def raises(self, kind, client, code=None, **fields):
        try:
            client.chat.completions.create(**self.request | fields)
        except openai.APIError as error:
            assert type(error) is kind, f"{type(error)} is not {kind}: {error}"
            assert code is None or error.code == code, f"{error.code} is not {code}"
            return error
        raise AssertionError(f"{kind} was not raised")

    def a_server_with_keys(self, url, key):
        for wrong in ("none", key + "x"):
            error = self.raises(openai.AuthenticationError, self.client.with_options(base_url=url, api_key=wrong), "invalid_api_key")
            assert error.status_code == 401 and error.request_id, error
        right = self.client.with_options(base_url=url, api_key=key)
        assert right.chat.completions.create(**self.request).choices[0].message.content
        assert right.models.retrieve(self.model).id == self.model

    def a_server_that_is_called_by_another_name(self):
        stranger = self.client.with_options(default_headers={"host": "evil.example"})
        error = self.raises(openai.PermissionDeniedError, stranger, "unknown_host")
        assert error.status_code == 403 and error.request_id, error

    def a_server_that_is_full(self, url):
        """One slot, and one place to wait: a third is told when to come again, and a client that retries does so then."""
        endless = {"max_completion_tokens": 3000, "stream": True, "extra_body": {"min_tokens": 3000}}
        busy = self.client.with_options(base_url=url)
        with ThreadPoolExecutor(2) as others, busy.chat.completions.create(**self.request | endless) as stream:
            next(iter(stream))
            second = others.submit(busy.chat.completions.create, **self.request)
            while b'requests_waiting{model="%s"} 1' % self.model.encode() not in metrics(url):
                time.sleep(0.01)
            error = self.raises(openai.RateLimitError, busy, "queue_full")
            assert error.response.headers["retry-after"] == "1", error.response.headers
            started = time.monotonic()
            third = others.submit(busy.with_options(max_retries=5).chat.completions.create, **self.request)
            time.sleep(0.3)
            stream.close()
            assert second.result().choices[0].message.content == third.result().choices[0].message.content
            assert time.monotonic() - started >= 1, "came again before it was told to"

    def a_server_that_is_slow(self, url):
        """Its queue times out after a second: 503, which clients take for an error of the server's."""
        endless = {"max_completion_tokens": 3000, "stream": True, "extra_body": {"min_tokens": 3000}}
        busy = self.client.with_options(base_url=url)
        with busy.chat.completions.create(**self.request | endless) as stream:
            next(iter(stream))
            error = self.raises(openai.InternalServerError, busy, "queue_timeout")
            assert error.status_code == 503 and error.response.headers["retry-after"] == "1", error

    def retries_are_the_clients(self):
        """With one retry, a client comes again after what `retry-after` says; with none, it raises."""
        for status in (429, 503):
            with Relay(self.origin, [status], {"retry-after": "1"}) as relay:
                client = self.client.with_options(base_url=relay.url + "/v1", max_retries=1)
                assert client.chat.completions.create(**self.request).choices[0].message.content
                first, second = relay.times
                assert second - first >= 1, relay.times
        with Relay(self.origin, [503, 503], {"x-should-retry": "false"}) as relay:
            client = self.client.with_options(base_url=relay.url + "/v1", max_retries=1)
            self.raises(openai.InternalServerError, client, "later")
            assert len(relay.times) == 1, relay.times

    def tools_that_the_template_does_not_know(self):
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        self.refused(openai.BadRequestError, "unsupported_parameter", "tools", tools=[tool])

    def calls_of_functions(self, url):
        """A server whose template knows tools."""
        client = self.client.with_options(base_url=url)
        weather = openai.pydantic_function_tool(Weather, name="weather")
        nothing = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
        now = {"type": "function", "function": {"name": "now", "strict": True, "parameters": nothing}}
        asked = [{"role": "user", "content": "What is the weather in Ulm?"}]
        request = {"model": self.model, "messages": asked, "tools": [weather, now], "max_completion_tokens": 120}
        choices = ["required", {"type": "function", "function": {"name": "weather"}}]
        for choice in choices:
            for temperature, seed in [(0, 0), (1.5, 1), (1.5, 2)]:
                fields = request | {"tool_choice": choice, "temperature": temperature, "seed": seed, "parallel_tool_calls": False}
                whole = client.chat.completions.parse(**fields).choices[0]
                [call] = whole.message.tool_calls
                assert whole.finish_reason == "tool_calls" and whole.message.content is None, whole
                assert call.id and call.function.name in ("weather", "now"), call
                if call.function.name == "weather":
                    assert isinstance(call.function.parsed_arguments, Weather), call
                    Weather.model_validate_json(call.function.arguments)
                else:
                    assert choice == "required" and isinstance(json.loads(call.function.arguments), dict), call
                chunks = list(client.chat.completions.create(**fields, stream=True))
                pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
                assert {piece.index for piece in pieces} == {0} and pieces[0].id, pieces
                assert pieces[0].function.name == call.function.name, pieces
                streamed = "".join(piece.function.arguments for piece in pieces)
                assert streamed == call.function.arguments, streamed
                assert chunks[-1].choices[0].finish_reason == "tool_calls", chunks[-1]
        answered = asked + [
            whole.message.model_dump(include={"role", "content", "tool_calls"}, exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "rain"},
        ]
        answered[1]["tool_calls"][0]["function"].pop("parsed_arguments", None)
        for choice in ("auto", "none"):
            later = client.chat.completions.create(**request | {"messages": answered, "tool_choice": choice, "temperature": 0})
            assert later.usage.prompt_tokens > 50 and later.choices[0].finish_reason in ("stop", "length", "tool_calls"), later
        try:
            bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "no such type"}}}
            client.chat.completions.create(**request | {"tools": [now, bad], "tool_choice": "required"})
        except openai.BadRequestError as error:
            assert error.param == "tools[1].function.parameters", error
        else:
            raise AssertionError("a schema that is none was taken")

    def answers_after_refusals(self):
        assert self.whole_answer().choices[0].message.content == self.create().choices[0].message.content


def main():
    base_url, model = sys.argv[1:3]
    picture = Path(sys.argv[3]).read_bytes() if len(sys.argv) > 3 else drawing()
    checks = Checks(base_url, model, picture)
    # Other servers with the same model, as KIND=URL: one with a key, one that is full, one that is slow, and one whose
    # template knows tools. What they are for is not checked where they are not named.
    others = dict(other.split("=", 1) for other in sys.argv[4:])
    todo = [
        checks.models,
        checks.whole_answer,
        checks.text_alone,
        checks.several_pictures,
        checks.stream_that_is_left,
        checks.stream_equals_whole_answer,
        checks.conversation,
        checks.limits_and_stops,
        checks.choices_and_logprobs,
        checks.json_of_a_schema,
        checks.parsed_by_a_model_of_pydantic,
        checks.text_completions,
        checks.refusals,
        checks.tools_that_the_template_does_not_know,
        checks.classes_of_errors,
        checks.a_server_that_is_called_by_another_name,
        checks.retries_are_the_clients,
        checks.answers_after_refusals,
    ]
    for check in todo:
        check()
        print(f"ok {check.__name__.replace('_', ' ')}", flush=True)
    for kind, check in [
        ("keys", lambda url: checks.a_server_with_keys(url, "sk-test")),
        ("full", checks.a_server_that_is_full),
        ("slow", checks.a_server_that_is_slow),
        ("tools", checks.calls_of_functions),
    ]:
        if kind in others:
            check(others[kind])
            print(f"ok the server of {kind}", flush=True)


main()
