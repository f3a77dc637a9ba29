#!/usr/bin/env python3
"""`qbridge encode` beside transformers, on the same bundle, picture, threads and minutes.

    python tests/bench/encode.py --qbridge target/release/qbridge --bundle BUNDLE --picture cat.png

Rounds alternate between the two, because a shared machine's speed drifts: only the ratio counts. What is timed
is the whole way from the picture file's bytes to the soft prompt (decoding, preprocessing, ViT, Q-Former,
projection), f32, batch 1. Needs torch, transformers, safetensors and Pillow. Prints a Markdown table.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import time
import tomllib
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel, BlipImageProcessor


class Reference:
    """The bundle's vision side in transformers."""

    def __init__(self, bundle: Path):
        manifest = tomllib.loads((bundle / "bundle.toml").read_text())
        self.vision = Blip2VisionModel(Blip2VisionConfig(**manifest["vision"])).eval()
        self.qformer = Blip2QFormerModel(Blip2QFormerConfig(**manifest["qformer"])).eval()
        qformer = load_file(bundle / "qformer.safetensors")
        self.query_tokens = qformer["query_tokens"].float()
        self._load(self.vision, load_file(bundle / "vision.safetensors"), "vision_model.")
        self._load(self.qformer, qformer, "qformer.")
        projection = load_file(bundle / "projection.safetensors")
        weight = projection["language_projection.weight"].float()
        self.projection = torch.nn.Linear(weight.shape[1], weight.shape[0]).eval()
        self._load(self.projection, projection, "language_projection.")
        size = manifest["vision"]["image_size"]
        preprocessing = manifest["preprocessing"]
        self.processor = BlipImageProcessor(
            size={"height": size, "width": size},
            image_mean=preprocessing["image_mean"],
            image_std=preprocessing["image_std"],
        )

    @staticmethod
    def _load(module: torch.nn.Module, tensors: dict[str, torch.Tensor], prefix: str) -> None:
        state = {name.removeprefix(prefix): t.float() for name, t in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(state)

    @torch.inference_mode()
    def encode(self, file: bytes) -> torch.Tensor:
        """Soft prompt [1, queries, n_embd] of an encoded picture."""
        image = Image.open(io.BytesIO(file)).convert("RGB")
        pixels = self.processor(images=image, return_tensors="pt")["pixel_values"]
        vision = self.vision(pixel_values=pixels).last_hidden_state
        queries = self.qformer(query_embeds=self.query_tokens, encoder_hidden_states=vision).last_hidden_state
        return self.projection(queries)


def time_reference(reference: Reference, file: bytes, repeat: int) -> float:
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        reference.encode(file)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def time_qbridge(program: Path, bundle: Path, picture: Path, repeat: int) -> float:
    command = [program, "encode", bundle, picture, "--repeat", str(repeat), "--timings"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return statistics.median(json.loads(line)["seconds"] for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qbridge", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeat", type=int, default=20)
    args = parser.parse_args()

    torch.set_num_threads(os.cpu_count() or 1)
    reference, file = Reference(args.bundle), args.picture.read_bytes()
    time_reference(reference, file, 3)
    time_qbridge(args.qbridge, args.bundle, args.picture, 3)
    rounds = [
        (
            time_qbridge(args.qbridge, args.bundle, args.picture, args.repeat),
            time_reference(reference, file, args.repeat),
        )
        for _ in range(args.rounds)
    ]
    print("| round | qbridge ms | transformers ms | ratio |\n|---|---|---|---|")
    for number, (ours, theirs) in enumerate(rounds, 1):
        print(f"| {number} | {ours * 1e3:.1f} | {theirs * 1e3:.1f} | {ours / theirs:.2f} |")
    ratio = statistics.median(ours / theirs for ours, theirs in rounds)
    print(f"\nmedian ratio {ratio:.2f} (below 1: qbridge is faster)")


if __name__ == "__main__":
    main()
