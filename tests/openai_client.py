"""Checks a running server with OpenAI's own client, every answer validated against its schema.

    pip install -r tests/requirements.txt
    python tests/openai_client.py http://127.0.0.1:8080/v1 qbridge-demo [PICTURE]

Prints a line for each check; exits with 1 at the first that fails.
"""

import base64
import json
import struct
import sys
import zlib
from pathlib import Path

import openai

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


class Checks:
    def __init__(self, base_url, model, picture):
        self.client = openai.OpenAI(
            base_url=base_url, api_key="none", max_retries=0, timeout=300, _strict_response_validation=True
        )
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
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        self.refused(bad, "unsupported_parameter", "tools", tools=[tool])
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

    def answers_after_refusals(self):
        assert self.whole_answer().choices[0].message.content == self.create().choices[0].message.content


def main():
    base_url, model = sys.argv[1:3]
    picture = Path(sys.argv[3]).read_bytes() if len(sys.argv) > 3 else drawing()
    checks = Checks(base_url, model, picture)
    for check in [
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
        checks.refusals,
        checks.answers_after_refusals,
    ]:
        check()
        print(f"ok {check.__name__.replace('_', ' ')}", flush=True)


main()
