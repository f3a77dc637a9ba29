"""Sends a running server what its own OpenAPI document allows and what it does not (schemathesis).

    pip install -r tests/requirements.txt
    python tests/api_properties.py http://127.0.0.1:8080/v1 qbridge-demo [CASES] [SEED]

A server error, an answer that the document does not describe, or a request that it forbids and that is answered makes
the exit code 1. CASES are for each route, 60 where none are given; 1000 make about 8,000 requests.
"""

import base64
import os
import sys
import tempfile
from pathlib import Path

import schemathesis
from hypothesis import strategies
from schemathesis.cli import schemathesis as command

LARGEST_INTEGER = 2**63 - 1
PICTURES = Path(__file__).resolve().parent.parent / "demo/pictures"
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]


def data_uri(picture):
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def picture_uris():
    """Pictures, damaged ones, and what is none."""
    whole = [picture.read_bytes() for picture in sorted(PICTURES.glob("*.png"))[:3]]
    damaged = [whole[0][:length] for length in (0, 8, 33, 1000)] + [whole[0][:60] + whole[1][60:]]
    others = ["", "data:", "data:,", "data:;base64,=", "https://localhost/a.png", "file:///etc/passwd", "a.png"]
    return strategies.one_of(
        strategies.sampled_from([data_uri(picture) for picture in whole + damaged] + others),
        strategies.binary(max_size=200).map(data_uri),
    )


def main():
    base_url, model = sys.argv[1:3]
    cases = sys.argv[3] if len(sys.argv) > 3 else "60"
    seed = sys.argv[4] if len(sys.argv) > 4 else "1"
    schemathesis.openapi.format("image-uri", picture_uris())

    @schemathesis.hook
    def map_body(context, body):
        """A model that is there, and answers that are short: else a few thousand of them would take the whole day."""
        if isinstance(body, dict) and context.operation.path.startswith("/v1/"):
            if isinstance(body.get("model"), str):
                body["model"] = model
            longest = body.get("max_completion_tokens")
            is_long = longest is None or type(longest) is int and 4 < longest <= LARGEST_INTEGER
            if is_long and context.operation.path.endswith("/completions"):
                body["max_completion_tokens"] = 4
        return body

    origin = base_url.removesuffix("/v1")
    options = {"phases": "coverage,fuzzing", "checks": ",".join(CHECKS), "max-examples": cases, "seed": seed}
    flags = [f"--{name}={value}" for name, value in options.items()]
    # Found again from the seed, so nothing is kept.
    flags += ["--generation-database=none", "--continue-on-failure", "--warnings=off"]
    # What it keeps of a run goes into the current directory.
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        command(["run", f"{origin}/openapi.json", *flags])


main()
