"""Captions a folder of pictures with Ray Data over a fleet of servers (pip install "ray[data]" aiohttp).

    python3 ray_caption.py photos/ captions/ http://host-1:8080/v1 http://host-2:8080/v1 --model blip2-opt

Writes JSON lines {"image", "caption", "error"} into files of captions/, a new folder. Each server gets its share of the
pictures; with a balancer in front of them, one URL is enough. QBRIDGE_API_KEY holds the key where servers want one. Exit code
1 says that some pictures have no caption.
"""

import argparse
import base64
import json
import os
import sys
from pathlib import Path

import ray
from ray.data.llm import HttpRequestProcessorConfig, HttpRequestStageConfig, build_processor

# Those that `qbridge caption` takes from a directory.
ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

parser = argparse.ArgumentParser()
parser.add_argument("pictures")
parser.add_argument("captions")
parser.add_argument("urls", nargs="+")
parser.add_argument("--model", required=True, help="the bundle, as the servers call it")
parser.add_argument("--prompt", help="what to ask for, where it is not the model's own caption")
parser.add_argument("--in-flight", type=int, default=4, help="requests at once for each server: its slots, or some more")
args = parser.parse_args()


def question(row):
    data = base64.b64encode(row["bytes"]).decode()
    # What kind of picture it is, its bytes say.
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}]
    if args.prompt:
        content.append({"type": "text", "text": args.prompt})
    return {
        "path": row["path"],
        "payload": {"model": args.model, "messages": [{"role": "user", "content": content}]},
    }


def caption(row):
    answer = row["http_response"]
    # Rows are of one table: each has every field, if only as None.
    if answer.get("error"):
        return {"image": row["path"], "caption": None, "error": answer["error"]["message"]}
    return {"image": row["path"], "caption": answer["choices"][0]["message"]["content"], "error": None}


def captions_of(part, url):
    config = HttpRequestProcessorConfig(
        url=f"{url}/chat/completions",
        headers={"Authorization": f"Bearer {os.environ.get('QBRIDGE_API_KEY', 'none')}"},
        # A batch is worked off one by one, by each of the workers.
        batch_size=4,
        # A full queue answers 429; it is asked again.
        max_retries=5,
        concurrency=args.in_flight,
        # It only waits for answers.
        http_request_stage=HttpRequestStageConfig(num_cpus=0.1),
    )
    return build_processor(config, preprocess=question, postprocess=caption)(part)


paths = sorted(
    str(path) for path in Path(args.pictures).rglob("*") if path.suffix.lower() in ENDINGS and path.is_file()
)
if not paths:
    parser.error(f"no pictures below {args.pictures}")
# Ray would add its files to those of an earlier run.
if os.path.isdir(args.captions) and os.listdir(args.captions):
    parser.error(f"{args.captions} is not empty")
# Only names are shared out here: the files are read where they are sent from.
shares = [paths[index :: len(args.urls)] for index in range(len(args.urls))]
captions = [
    captions_of(ray.data.read_binary_files(share, include_paths=True), url)
    for share, url in zip(shares, args.urls)
    if share
]
captions[0].union(*captions[1:]).write_json(args.captions)

errors = []
for path in Path(args.captions).glob("*.json"):
    with open(path, encoding="utf-8") as rows:
        errors += [error for row in rows if (error := json.loads(row)["error"]) is not None]
if errors:
    sys.exit(f"{len(errors)} of {len(paths)} have no caption; one because {errors[0]}")
