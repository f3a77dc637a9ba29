"""The vision side of a bundle in PyTorch and ONNX Runtime, from pixels to the soft prompt.

    python tests/bench/reference.py --bundle BUNDLE --export DIR
    python tests/bench/reference.py --bundle BUNDLE --kind torch-f32 --picture cat.png --batch 1,1,4 [--out rows.npy]
    python tests/bench/reference.py --bundle BUNDLE --kind onnx-int8 --onnx DIR --picture cat.png --batch 1,1,4

The first writes what ONNX Runtime reads: `f32.onnx`, and `int8.onnx` by its dynamic quantization with a scale for each
output. The others encode as many copies of a picture as `--batch` says, one number after the other, and print what
`qbridge encode --timings` prints: a JSON line each, with the seconds of `preprocess` (from the file's bytes to
pixels) and `forward` (to the soft prompt). `vision.py` runs them beside qbridge.
"""

import argparse
import io
import json
import os
import time
import tomllib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel, BlipImageProcessor

KINDS = ("torch-f32", "torch-bf16", "onnx-f32", "onnx-int8")


def empty(make) -> torch.nn.Module:
    """A module whose weights nobody has drawn: they are loaded next."""
    with torch.device("meta"):
        module = make()
    left = {name for name, _ in module.named_buffers()} - module.state_dict().keys()
    assert not left, f"nothing would fill {left}"
    return module


class Reference(torch.nn.Module):
    """ViT, Q-Former and projection of a bundle: pixels `[batch, 3, size, size]` to `[batch, queries, n_embd]`."""

    def __init__(self, bundle: Path, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        manifest = tomllib.loads((bundle / "bundle.toml").read_text())
        self.vision = empty(lambda: Blip2VisionModel(Blip2VisionConfig(**manifest["vision"])))
        self.qformer = empty(lambda: Blip2QFormerModel(Blip2QFormerConfig(**manifest["qformer"])))
        qformer = load_file(bundle / "qformer.safetensors")
        self.query_tokens = torch.nn.Parameter(qformer["query_tokens"].to(dtype))
        load(self.vision, load_file(bundle / "vision.safetensors"), "vision_model.", dtype)
        load(self.qformer, qformer, "qformer.", dtype)
        projection = load_file(bundle / "projection.safetensors")
        n_embd, width = projection["language_projection.weight"].shape
        self.projection = empty(lambda: torch.nn.Linear(width, n_embd))
        load(self.projection, projection, "language_projection.", dtype)
        self.dtype = dtype
        self.processor = processor(manifest)
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        vision = self.vision(pixel_values=pixels).last_hidden_state
        queries = self.query_tokens.expand(pixels.shape[0], -1, -1)
        queries = self.qformer(query_embeds=queries, encoder_hidden_states=vision).last_hidden_state
        return self.projection(queries)


def load(module: torch.nn.Module, tensors: dict[str, torch.Tensor], prefix: str, dtype: torch.dtype) -> None:
    state = {name.removeprefix(prefix): t.to(dtype) for name, t in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(state, assign=True)


def processor(manifest: dict) -> BlipImageProcessor:
    size, preprocessing = manifest["vision"]["image_size"], manifest["preprocessing"]
    return BlipImageProcessor(
        size={"height": size, "width": size},
        image_mean=preprocessing["image_mean"],
        image_std=preprocessing["image_std"],
    )


def pixels_of(processor: BlipImageProcessor, file: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(file)).convert("RGB")
    return processor(images=image, return_tensors="pt")["pixel_values"]


def export(bundle: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    reference = Reference(bundle)
    size = reference.vision.config.image_size
    with torch.inference_mode():
        torch.onnx.export(
            reference,
            (torch.randn(2, 3, size, size),),
            out / "f32.onnx",
            input_names=["pixels"],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
            external_data=True,
            verbose=False,
        )
    del reference
    quantize_dynamic(
        out / "f32.onnx",
        out / "int8.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
        # Its product of convolutions in 8 bits is slower than the one in f32.
        op_types_to_quantize=["MatMul", "Gemm"],
        use_external_data_format=True,
    )


def encoder(args: argparse.Namespace):
    """A function from pixels, as torch has them, to soft prompts, and the picture's processor."""
    if args.kind.startswith("torch"):
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.kind.removeprefix("torch-")]
        reference = Reference(args.bundle, dtype)

        def encode(pixels: torch.Tensor) -> np.ndarray:
            with torch.inference_mode():
                return reference(pixels.to(dtype)).float().numpy()

        return encode, reference.processor
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    file = args.onnx / f"{args.kind.removeprefix('onnx-')}.onnx"
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    manifest = tomllib.loads((args.bundle / "bundle.toml").read_text())
    return lambda pixels: session.run(None, {"pixels": pixels.numpy()})[0], processor(manifest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--export", type=Path, metavar="DIR")
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--onnx", type=Path, metavar="DIR", help="what --export wrote")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--batch", default="1")
    parser.add_argument("--out", type=Path, help="where to write the first picture's soft prompt")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.export:
        return export(args.bundle, args.export)
    encode, processor = encoder(args)
    file, rows = args.picture.read_bytes(), None
    for batch in map(int, args.batch.split(",")):
        started = time.perf_counter()
        pixels = pixels_of(processor, file).repeat(batch, 1, 1, 1)
        preprocess = time.perf_counter() - started
        rows = encode(pixels)
        seconds = time.perf_counter() - started
        line = {"batch": batch, "seconds": seconds, "preprocess": preprocess, "forward": seconds - preprocess}
        print(json.dumps(line), flush=True)
    if args.out:
        np.save(args.out, rows[0])


if __name__ == "__main__":
    main()
