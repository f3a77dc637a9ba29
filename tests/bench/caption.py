#!/usr/bin/env python3
"""`qbridge caption` beside transformers, on the same pictures, batch size, threads and minutes.

    python tests/bench/caption.py --qbridge target/release/qbridge --bundle BUNDLE --pictures DIR

Rounds alternate between the two, because a shared machine's speed drifts: only the ratio counts. What is timed is the way
from picture files to captions (reading, decoding, ViT, Q-Former, prefill, greedy decoding), without loading; the peak of
memory is that of the whole process. transformers loads the bundle's own language model from its GGUF, dequantized, and
captions `--batch` pictures at once, all with the prompt that the bundle's chat template makes; qbridge runs with as many
slots. CPU seconds are those of all threads, qbridge's with loading, which takes about one. Needs torch, transformers, gguf,
safetensors and Pillow. Prints a Markdown table, and how many captions are the same.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

IMAGE = "<image>"


def transformers_round(args) -> None:
    """Captions the pictures in this process; a JSON line with the seconds and the captions."""
    import torch
    from encode import Reference
    from PIL import Image
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(args.threads)
    reference = Reference(args.bundle)
    manifest = tomllib.loads((args.bundle / "bundle.toml").read_text())
    gguf = {"gguf_file": manifest.get("files", {}).get("llm", {}).get("path", "llm.gguf")}
    tokenizer = AutoTokenizer.from_pretrained(args.bundle, **gguf)
    model = AutoModelForCausalLM.from_pretrained(args.bundle, dtype=getattr(torch, args.dtype), **gguf).eval()
    embed = model.get_input_embeddings()
    message = {"role": "user", "content": IMAGE + manifest["prompt"]["caption_prompt"]}
    prompt = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    before, after = (
        tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids for text in prompt.split(IMAGE)
    )
    paths = sorted(args.pictures.iterdir())

    @torch.inference_mode()
    def caption(batch: list[Path]) -> list[str]:
        images = [Image.open(path).convert("RGB") for path in batch]
        pixels = reference.processor(images=images, return_tensors="pt")["pixel_values"]
        vision = reference.vision(pixel_values=pixels).last_hidden_state
        query_tokens = reference.query_tokens.expand(len(batch), -1, -1)
        queries = reference.qformer(query_embeds=query_tokens, encoder_hidden_states=vision).last_hidden_state
        rows = reference.projection(queries).to(model.dtype)
        around = [embed(ids).expand(len(batch), -1, -1) for ids in (before, after)]
        inputs = torch.cat([around[0], rows, around[1]], dim=1)
        mask = torch.ones(inputs.shape[:2], dtype=torch.long)
        ids = model.generate(
            inputs_embeds=inputs,
            attention_mask=mask,
            max_new_tokens=args.max_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    caption(paths[: args.batch])
    captions, started, busy = [], time.perf_counter(), time.process_time()
    for i in range(0, len(paths), args.batch):
        captions += caption(paths[i : i + args.batch])
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "cpu": time.process_time() - busy, "captions": captions}))


def run(command: list[str]) -> tuple[str, float, float]:
    """What a command prints, its CPU seconds, and the most memory it had, in MB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status in (0, 256), command
    return printed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def qbridge_round(args) -> tuple[dict, float]:
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "captions.jsonl"
        command = [args.qbridge, "caption", args.bundle, args.pictures, "--out", out, "--json", "--quiet"]
        command += ["--slots", str(args.batch), "--max-tokens", str(args.max_tokens)]
        printed, cpu, memory = run([str(word) for word in command])
        captions = [json.loads(line)["caption"] for line in out.read_text().splitlines()]
    return {"seconds": json.loads(printed)["seconds"], "cpu": cpu, "captions": captions}, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qbridge", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True, help="directory of pictures, all different")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--transformers", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.transformers:
        return transformers_round(args)
    n = len(list(args.pictures.iterdir()))
    ratios, same = [], 0
    columns = ["round", "qbridge pictures/s", "transformers", "ratio", "CPU s", "CPU s", "MB", "MB"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for number in range(args.rounds):
        ours, memory = qbridge_round(args)
        printed, _, their_memory = run([sys.executable, *sys.argv, "--transformers"])
        theirs = json.loads(printed)
        ratios.append(theirs["seconds"] / ours["seconds"])
        same = sum(a == b for a, b in zip(ours["captions"], theirs["captions"], strict=True))
        rates = f"{n / ours['seconds']:.2f} | {n / theirs['seconds']:.2f} | {ratios[-1]:.2f}"
        cost = f"{ours['cpu']:.1f} | {theirs['cpu']:.1f} | {memory:.0f} | {their_memory:.0f}"
        print(f"| {number + 1} | {rates} | {cost} |", flush=True)
    print(f"\nmedian ratio {statistics.median(ratios):.2f} (above 1: qbridge is faster); {same} of {n} captions the same")


if __name__ == "__main__":
    main()
