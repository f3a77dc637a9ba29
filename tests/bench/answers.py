"""Captions and first tokens by transformers: what `caption.py` and `first_token.py` run beside qbridge.

    python tests/bench/answers.py --bundle BUNDLE --dtype float32 --pictures DIR --batch 8 --max-tokens 32
    python tests/bench/answers.py --bundle BUNDLE --checkpoint DIR --dtype bfloat16 --pictures DIR --first-token

The language model is the bundle's own GGUF, dequantized, behind its chat template; or, with `--checkpoint`, that of the
BLIP-2 checkpoint of random weights that the bundle was converted from (`full_size.py`), behind `--prompt-tokens`
tokens. Prints one JSON line: {"seconds", "cpu_seconds", "captions"} of all pictures, `--batch` at once, without loading;
or {"first_token"}, the seconds from a picture file's bytes to the first token, one for each picture.
"""

import argparse
import json
import os
import time
import tomllib
from pathlib import Path

import torch
from reference import Reference, pixels_of, processor
from transformers import AutoModelForCausalLM, AutoTokenizer, Blip2ForConditionalGeneration

IMAGE = "<image>"


class Answerer:
    """A BLIP-2 and what stands around its picture's rows in the prompt."""

    def __init__(self, args: argparse.Namespace) -> None:
        dtype = getattr(torch, args.dtype)
        manifest = tomllib.loads((args.bundle / "bundle.toml").read_text())
        self.dtype = dtype
        self.processor = processor(manifest)
        if args.checkpoint:
            model = Blip2ForConditionalGeneration.from_pretrained(args.checkpoint, dtype=dtype).eval()
            self.vision, self.qformer, self.query_tokens = model.vision_model, model.qformer, model.query_tokens
            self.projection, self.model = model.language_projection, model.language_model
            self.before = torch.empty(1, 0, dtype=torch.long)
            # The weights are random, so any tokens will do.
            self.after = torch.arange(5, 5 + args.prompt_tokens).unsqueeze(0)
            self.tokenizer, self.end = None, self.model.config.eos_token_id
            return
        reference = Reference(args.bundle, dtype)
        self.vision, self.qformer, self.query_tokens = reference.vision, reference.qformer, reference.query_tokens
        self.projection = reference.projection
        gguf = {"gguf_file": manifest["files"]["llm"]["path"]}
        self.tokenizer = AutoTokenizer.from_pretrained(args.bundle, **gguf)
        self.model = AutoModelForCausalLM.from_pretrained(args.bundle, dtype=dtype, **gguf).eval()
        self.end = self.tokenizer.eos_token_id
        message = {"role": "user", "content": IMAGE + manifest["prompt"]["caption_prompt"]}
        prompt = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        self.before, self.after = (
            self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids for text in prompt.split(IMAGE)
        )

    @torch.inference_mode()
    def answer(self, files: list[bytes], max_tokens: int, min_tokens: int) -> list[str]:
        pixels = torch.cat([pixels_of(self.processor, file) for file in files]).to(self.dtype)
        vision = self.vision(pixel_values=pixels).last_hidden_state
        queries = self.query_tokens.to(self.dtype).expand(len(files), -1, -1)
        queries = self.qformer(query_embeds=queries, encoder_hidden_states=vision).last_hidden_state
        rows = self.projection(queries.to(self.dtype))
        embed = self.model.get_input_embeddings()
        around = [embed(ids).expand(len(files), -1, -1) for ids in (self.before, self.after)]
        inputs = torch.cat([around[0], rows, around[1]], dim=1)
        ids = self.model.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
            max_new_tokens=max_tokens,
            min_new_tokens=min_tokens,
            do_sample=False,
            pad_token_id=self.end,
        )
        if self.tokenizer is None:
            return [f"{row.numel()} tokens" for row in ids]
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=1)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--min-tokens", type=int, default=0)
    parser.add_argument("--first-token", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    answerer = Answerer(args)
    files = [path.read_bytes() for path in sorted(args.pictures.iterdir())]
    if args.first_token:
        seconds = []
        for file in files:
            started = time.perf_counter()
            answerer.answer([file], 1, 0)
            seconds.append(time.perf_counter() - started)
        print(json.dumps({"first_token": seconds}))
        return
    answerer.answer(files[: args.batch], 2, 0)
    captions, started, busy = [], time.perf_counter(), time.process_time()
    for i in range(0, len(files), args.batch):
        captions += answerer.answer(files[i : i + args.batch], args.max_tokens, args.min_tokens)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "cpu_seconds": time.process_time() - busy, "captions": captions}))


if __name__ == "__main__":
    main()
