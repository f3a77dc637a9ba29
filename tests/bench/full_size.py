#!/usr/bin/env python3
"""Writes a checkpoint of full size with random weights, to measure conversion and answering with.

    python tests/bench/full_size.py blip2-opt-2.7b DIR
    qbridge convert DIR --out BUNDLE && qbridge ask BUNDLE cat.png "Question: what is this? Answer:"

DIR gets what transformers saves: config.json, f32 weights in shards of at most 5 GB, preprocessor and tokenizer. Names
and shapes are those of transformers' own classes. The answers mean nothing; time, memory and sizes do. blip2-opt-1.3b
has no published model; `make bench` takes it, since it is small for one of full size. Needs torch, transformers,
safetensors and about 16 GB of disk, half as much with `--dtype float16`.
"""

import argparse
import itertools
import json
import string
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2VisionConfig,
    BlipImageProcessor,
    OPTConfig,
    T5Config,
)

LANGUAGE_MODELS = {
    "blip2-opt-1.3b": lambda: OPTConfig(
        vocab_size=50304, hidden_size=2048, ffn_dim=8192, num_hidden_layers=24, num_attention_heads=32, eos_token_id=50118
    ),
    "blip2-opt-2.7b": lambda: OPTConfig(
        vocab_size=50304, hidden_size=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32, eos_token_id=50118
    ),
    "blip2-flan-t5-xl": lambda: T5Config(
        vocab_size=32128,
        d_model=2048,
        d_ff=5120,
        num_layers=24,
        num_heads=32,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    ),
}
SHARD_BYTES = 5_000_000_000


def weights(model: torch.nn.Module) -> dict[str, torch.Size]:
    """Shapes of what is saved, without the copies of tied weights."""
    tied = set(model.all_tied_weights_keys)
    return {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}


def fill(name: str, shape: torch.Size, block: np.ndarray, start: int) -> np.ndarray:
    """Values that keep activations finite over all layers: small weights, norms of 1, biases of 0."""
    if "norm" in name and name.endswith("weight"):
        return np.ones(shape, np.float32)
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    return np.resize(np.roll(block, start), shape)


def save_weights(shapes: dict[str, torch.Size], out: Path, dtype: str) -> None:
    """Shards with their index, as `save_pretrained` names them."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if groups[-1] and size + 4 * shape.numel() > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += 4 * shape.numel()
    block = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * np.float32(0.02)
    weight_map = {}
    for index, names in enumerate(groups):
        file = f"model-{index + 1:05}-of-{len(groups):05}.safetensors"
        tensors = {name: fill(name, shapes[name], block, len(name) * 997) for name in names}
        save_file({name: tensor.astype(dtype) for name, tensor in tensors.items()}, out / file)
        weight_map |= dict.fromkeys(names, file)
    total = sum(np.dtype(dtype).itemsize * shape.numel() for shape in shapes.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    (out / "model.safetensors.index.json").write_text(text)


def strings():
    """Letters, then pairs of them, then threes: pieces of a tokenizer that reads English letter by letter."""
    for length in itertools.count(1):
        yield from ("".join(letters) for letters in itertools.product(string.ascii_letters, repeat=length))


def save_opt_tokenizer(out: Path) -> None:
    """Byte-level BPE of OPT's size, with its special tokens at their ids."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = [chr(byte) for byte in visible] + [chr(256 + n) for n in range(256 - len(visible))]
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *alphabet]
    merges = []
    for piece in strings():
        if len(vocabulary) == 50265:
            break
        if len(piece) > 1:
            merges.append(f"{piece[:-1]} {piece[-1]}")
            vocabulary.append(piece)
    (out / "vocab.json").write_text(json.dumps({piece: id for id, piece in enumerate(vocabulary)}))
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    config = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>", "add_bos_token": True}
    config["added_tokens_decoder"] = {"50265": {"content": "<image>", "special": True}}
    (out / "tokenizer_config.json").write_text(json.dumps(config))


def save_t5_tokenizer(out: Path) -> None:
    """Unigram of T5's size."""
    pieces = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]
    pieces += [[piece, -float(len(piece))] for piece in ["▁", *" ?:.,", *itertools.islice(strings(), 31_991)]]
    model = {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False}
    added = [
        {"id": id, "content": text, "special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
        for id, text in enumerate(["<pad>", "</s>", "<unk>"])
    ]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer = {"version": "1.0", "added_tokens": added, "pre_tokenizer": metaspace, "decoder": metaspace, "model": model}
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (out / "tokenizer_config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=LANGUAGE_MODELS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    config = Blip2Config(
        vision_config=Blip2VisionConfig().to_dict(), text_config=LANGUAGE_MODELS[args.model]().to_dict(), num_query_tokens=32
    )
    config.image_token_index = 50265 if "opt" in args.model else 32100
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    config.save_pretrained(args.out)
    BlipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(args.out)
    (save_opt_tokenizer if "opt" in args.model else save_t5_tokenizer)(args.out)
    save_weights(weights(model), args.out, args.dtype)


if __name__ == "__main__":
    main()
