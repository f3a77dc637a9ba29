#!/usr/bin/env python3
"""Golden outputs of ViT, Q-Former and projection, from transformers on a CPU in f32.

    python tests/golden/make_vision.py        # torch 2.15.0, transformers 5.23.0, safetensors 0.8

writes, into `tests/golden/vision/`:

- `NAME/config.json`: the model, as transformers saves it;
- `NAME.safetensors`: `vision`, `queries`, `soft_prompt`, cut down to the rows that `rows_vision` and
  `rows_soft_prompt` list, and `checksum` of the weights;
- `saved/`: one model whole, as `save_pretrained` lays it out in shards.

The weights of every other model are not stored: both sides make them from the tensors' names, see
`values` here and in `tests/tests/vision.rs`. `checksum` tells a mismatch of these two functions from a
mismatch of the models.
"""

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig

OUT = Path(__file__).resolve().parent / "vision"

# Sizes chosen apart from one another so that no two can be taken for each other. The epsilons of
# "shallow" are large enough to be seen in the outputs.
MODELS = {
    "shallow": dict(
        batch=2,
        vision=dict(hidden_size=48, num_attention_heads=4, intermediate_size=96, num_hidden_layers=2,
                    image_size=40, patch_size=8, layer_norm_eps=0.05),
        qformer=dict(hidden_size=32, num_attention_heads=2, intermediate_size=72, num_hidden_layers=3,
                     cross_attention_frequency=1, layer_norm_eps=0.02),
        queries=5, n_embd=24),
    # 100 pixels are 7 patches of 14 and a rest.
    "rest": dict(
        batch=3,
        vision=dict(hidden_size=64, num_attention_heads=2, intermediate_size=160, num_hidden_layers=5,
                    image_size=100, patch_size=14, layer_norm_eps=1e-5),
        qformer=dict(hidden_size=40, num_attention_heads=8, intermediate_size=128, num_hidden_layers=6,
                     cross_attention_frequency=2),
        queries=32, n_embd=56),
    "deep": dict(
        batch=1,
        vision=dict(hidden_size=80, num_attention_heads=5, intermediate_size=200, num_hidden_layers=12,
                    image_size=32, patch_size=4, qkv_bias=False),
        qformer=dict(hidden_size=48, num_attention_heads=6, intermediate_size=100, num_hidden_layers=5,
                     cross_attention_frequency=3),
        queries=1, n_embd=33),
    # Three layers of opt-2.7b's vision side at full width.
    "full_width": dict(
        batch=1, vision=dict(num_hidden_layers=3), qformer=dict(num_hidden_layers=3), queries=32, n_embd=2560,
        rows_vision=[0, 1, 2, 100, 255, 256], rows_soft_prompt=[0, 1, 15, 31]),
}  # fmt: skip

MASK = (1 << 64) - 1


def uniform(name: str, count: int) -> np.ndarray:
    """`count` values in [-1, 1): SplitMix64 started at the FNV-1a hash of the name, its top 24 bits."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of this name: large enough in queries and keys that attention picks its rows."""
    scale, offset = 1.0, 0.0
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "LayerNorm.weight")):
        scale, offset = 0.5, 1.0
    elif name.endswith(".bias"):
        scale = 0.3
    elif name.endswith(".weight"):
        gain = 1.5 if any(part in name for part in ("qkv", "query.", "key.")) else 1.0
        scale = gain * math.sqrt(3.0 / math.prod(shape[1:]))
    elif name == "pixels":
        scale = 2.0
    flat = uniform(name, math.prod(shape)) * np.float32(scale) + np.float32(offset)
    return flat.reshape(shape)


def checksum(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Sum over all tensors of each value's bits times its place, modulo 2^64."""
    total = np.uint64(0)
    with np.errstate(over="ignore"):
        for tensor in tensors.values():
            bits = tensor.reshape(-1).view(np.uint32).astype(np.uint64)
            total += (bits * np.arange(1, bits.size + 1, dtype=np.uint64)).sum(dtype=np.uint64)
    return np.array([total], dtype=np.uint64)


def build(spec: dict) -> Blip2ForConditionalGeneration:
    text = OPTConfig(hidden_size=spec["n_embd"], word_embed_proj_dim=spec["n_embd"], num_hidden_layers=1,
                     num_attention_heads=1, ffn_dim=8, vocab_size=16, max_position_embeddings=8)  # fmt: skip
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**spec["vision"]),
        qformer_config=Blip2QFormerConfig(**spec["qformer"]),
        text_config=text,
        num_query_tokens=spec["queries"],
        image_token_index=15,
    )
    return Blip2ForConditionalGeneration(config).eval()


@torch.no_grad()
def run(model: Blip2ForConditionalGeneration, pixels: np.ndarray) -> dict[str, np.ndarray]:
    vision = model.vision_model(torch.from_numpy(pixels)).last_hidden_state
    queries = model.qformer(
        query_embeds=model.query_tokens.expand(len(pixels), -1, -1), encoder_hidden_states=vision
    ).last_hidden_state
    soft_prompt = model.language_projection(queries)
    return {"vision": vision.numpy(), "queries": queries.numpy(), "soft_prompt": soft_prompt.numpy()}


def fill(model: Blip2ForConditionalGeneration) -> dict[str, np.ndarray]:
    weights = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("language_model."):
            weights[name] = values(name, tuple(parameter.shape))
            parameter.data = torch.from_numpy(weights[name])
    return weights


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name, spec in MODELS.items():
        model = build(spec)
        weights = fill(model)
        side = model.config.vision_config.image_size
        pixels = values("pixels", (spec["batch"], 3, side, side))
        outputs = run(model, pixels)
        spread = {key: round(float(value.std()), 3) for key, value in outputs.items()}
        print(name, {key: value.shape for key, value in outputs.items()}, "standard deviations", spread)
        rows_vision = spec.get("rows_vision", list(range(outputs["vision"].shape[1])))
        rows_soft_prompt = spec.get("rows_soft_prompt", list(range(spec["queries"])))
        golden = {
            "vision": np.ascontiguousarray(outputs["vision"][:, rows_vision]),
            "queries": outputs["queries"],
            "soft_prompt": np.ascontiguousarray(outputs["soft_prompt"][:, rows_soft_prompt]),
            "rows_vision": np.array(rows_vision, dtype=np.uint32),
            "rows_soft_prompt": np.array(rows_soft_prompt, dtype=np.uint32),
            "checksum": checksum(weights),
        }
        save_file(golden, OUT / f"{name}.safetensors")
        model.config.save_pretrained(OUT / name)
        if name == "shallow":
            model.save_pretrained(OUT / "saved", max_shard_size="100KB")


if __name__ == "__main__":
    main()
