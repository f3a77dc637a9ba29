"""Checks the embeddings of a running server with OpenAI's own client, answers of numbers validated against its schema.

    pip install -r tests/requirements.txt
    python tests/openai_embeddings.py http://127.0.0.1:8080/v1 MODEL PICTURE

Prints a line for each check; exits with 1 at the first that fails.
"""

import base64
import math
import sys
from pathlib import Path

import openai


def near(one, other):
    assert len(one) == len(other), (len(one), len(other))
    assert all(abs(a - b) < 1e-5 for a, b in zip(one, other)), (one, other)


def main():
    base_url, model, picture = sys.argv[1:4]
    options = dict(base_url=base_url, api_key="none", max_retries=0)
    client = openai.OpenAI(**options)
    # Base64, which the client asks for by itself and decodes, is not what its own schema says.
    strict = openai.OpenAI(**options, _strict_response_validation=True)
    uri = "data:image/png;base64," + base64.b64encode(Path(picture).read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": uri}}

    answer = client.embeddings.create(model=model, input="a dog")
    floats = strict.embeddings.create(model=model, input="a dog", encoding_format="float")
    near(answer.data[0].embedding, floats.data[0].embedding)
    assert math.isclose(math.hypot(*answer.data[0].embedding), 1, abs_tol=1e-4)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 2, answer.usage
    print("ok a text")

    several = strict.embeddings.create(model=model, input=["a cat", "a dog"], encoding_format="float")
    assert [entry.index for entry in several.data] == [0, 1]
    near(several.data[1].embedding, answer.data[0].embedding)
    print("ok several texts")

    mixed = client.embeddings.create(model=model, input=["a dog", part])
    near(mixed.data[0].embedding, answer.data[0].embedding)
    assert math.isclose(math.hypot(*mixed.data[1].embedding), 1, abs_tol=1e-4)
    print("ok pictures")

    short = client.embeddings.create(model=model, input="a dog", dimensions=4)
    head = answer.data[0].embedding[:4]
    near(short.data[0].embedding, [value / math.hypot(*head) for value in head])
    print("ok dimensions")

    for change, param in [
        ({"input": [1, 2, 3]}, "input"),
        ({"input": ""}, "input"),
        ({"dimensions": 100_000}, "dimensions"),
        ({"extra_body": {"pooling": "cls"}}, "pooling"),
    ]:
        try:
            client.embeddings.create(**{"model": model, "input": "a dog", **change})
        except openai.BadRequestError as error:
            assert error.param == param, (error.param, param)
        else:
            raise AssertionError(f"{change} was taken")
    print("ok refusals")


main()
