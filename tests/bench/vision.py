#!/usr/bin/env python3
"""ViT and Q-Former on a CPU: qbridge beside PyTorch and ONNX Runtime, in f32, bf16 and 8 bits.

    python tests/bench/vision.py --qbridge target/release/qbridge [--layers 39] [--batch 1 4] [--rounds 5]

A checkpoint of ViT-g's widths and BLIP-2's Q-Former is made of random weights (4.4 GB with all 39 layers) in a temporary
directory. Every one computes the same queries from the same pixels, in turns, because a shared machine's speed drifts:
only ratios count. 8 bits in ONNX Runtime are its dynamic quantization with a scale for each output. Prints a JSON line
for each, with the median seconds of a picture, the median of the rounds' ratios to PyTorch in f32, the cosine of its
queries to PyTorch's and, of the processes that do nothing else, the peak memory. Needs torch, transformers, onnx,
onnxruntime and onnxscript.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Blip2Config, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel, BlipImageProcessor, OPTConfig

PICTURE = Path(__file__).parent.parent.parent / "demo/pictures/dog.png"


class Reference(torch.nn.Module):
    """Pixels to query embeddings."""

    def __init__(self, config: Blip2Config) -> None:
        super().__init__()
        self.vision_model = Blip2VisionModel(config.vision_config)
        self.qformer = Blip2QFormerModel(config.qformer_config)
        self.query_tokens = torch.nn.Parameter(
            0.02 * torch.randn(1, config.num_query_tokens, config.qformer_config.hidden_size)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        vision = self.vision_model(pixel_values=pixels).last_hidden_state
        queries = self.query_tokens.expand(pixels.shape[0], -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=vision).last_hidden_state


def save_checkpoint(model: Reference, config: Blip2Config, out: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if "position_ids" not in name}
    tensors["language_projection.weight"] = torch.zeros(64, config.qformer_config.hidden_size)
    tensors["language_projection.bias"] = torch.zeros(64)
    save_file(tensors, out / "model.safetensors")
    config.save_pretrained(out)
    size = config.vision_config.image_size
    BlipImageProcessor(size={"height": size, "width": size}).save_pretrained(out)


class Qbridge:
    def __init__(self, program: Path, checkpoint: Path, kind: str, out: Path) -> None:
        self.command = [program, "encode", checkpoint, PICTURE, "--vision", kind, "--timings", "--out", out]
        self.out = out

    def run(self, batch: int, repeat: int) -> float:
        command = [*self.command, "--batch", str(batch), "--repeat", str(repeat + 1)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        # The first picture warms up.
        times = [json.loads(line)["forward"] for line in done.stdout.splitlines()][1:]
        return statistics.median(times)

    def queries(self) -> np.ndarray:
        return load_file(self.out)["queries"][:1].numpy()

    def peak_mib(self) -> float:
        text = subprocess.run(
            ["/usr/bin/env", "python3", "-c", PEAK, *map(str, self.command)], check=True, capture_output=True, text=True
        ).stdout
        return float(text.splitlines()[-1])


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


class Torch:
    def __init__(self, model: Reference, pixels: torch.Tensor, dtype: torch.dtype) -> None:
        self.model, self.pixels = model, pixels.to(dtype)

    @torch.inference_mode()
    def run(self, batch: int, repeat: int) -> float:
        pixels = self.pixels.expand(batch, -1, -1, -1).contiguous()
        return timed(lambda: self.model(pixels), repeat)

    @torch.inference_mode()
    def queries(self) -> np.ndarray:
        return self.model(self.pixels).float().numpy()


class Onnx:
    def __init__(self, file: Path, pixels: torch.Tensor, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.pixels = pixels.numpy()

    def run(self, batch: int, repeat: int) -> float:
        pixels = np.repeat(self.pixels, batch, 0)
        return timed(lambda: self.session.run(None, {"pixels": pixels}), repeat)

    def queries(self) -> np.ndarray:
        return self.session.run(None, {"pixels": self.pixels})[0]


def timed(function, repeat: int) -> float:
    function()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qbridge", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=39, help="of the ViT")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3, help="pictures or batches of a round")
    parser.add_argument("--without", nargs="*", default=[], help="who is left out, such as 'torch bf16'")
    args = parser.parse_args()

    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(num_hidden_layers=args.layers).to_dict(),
        text_config=OPTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, ffn_dim=64).to_dict(),
    )
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        model = Reference(config).eval()
        save_checkpoint(model, config, out)
        kinds = {
            kind: Qbridge(args.qbridge, out, kind, out / f"{kind}.safetensors") for kind in ("f32", "int8")
        }
        kinds["f32"].run(1, 1)
        pixels = load_file(out / "f32.safetensors")["pixels"]
        contestants = {f"qbridge {kind}": contestant for kind, contestant in kinds.items()}
        contestants["torch f32"] = Torch(model, pixels, torch.float32)
        if "torch bf16" not in args.without:
            bf16 = Reference(config).eval()
            bf16.load_state_dict(model.state_dict())
            contestants["torch bf16"] = Torch(bf16.bfloat16(), pixels, torch.bfloat16)
        if "onnx f32" not in args.without:
            with torch.inference_mode():
                torch.onnx.export(
                    model, (pixels.repeat(2, 1, 1, 1),), out / "model.onnx", input_names=["pixels"], dynamo=True,
                    dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},), external_data=True, verbose=False,
                )
            contestants["onnx f32"] = Onnx(out / "model.onnx", pixels, threads)
            if "onnx int8" not in args.without:
                quantize_dynamic(
                    out / "model.onnx", out / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8,
                    use_external_data_format=True,
                )
                contestants["onnx int8"] = Onnx(out / "int8.onnx", pixels, threads)
        for batch in args.batch:
            rounds = [
                {name: contestant.run(batch, args.repeat) / batch for name, contestant in contestants.items()}
                for _ in range(args.rounds)
            ]
            for name in contestants:
                ratios = [seconds[name] / seconds["torch f32"] for seconds in rounds]
                line = {
                    "batch": batch,
                    "who": name,
                    "seconds": round(statistics.median(seconds[name] for seconds in rounds), 3),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratios": [round(ratio, 3) for ratio in ratios],
                }
                print(json.dumps(line), flush=True)
        expected = contestants["torch f32"].queries()
        for name, contestant in contestants.items():
            line = {"who": name, "cosine": round(cosine(contestant.queries(), expected), 6)}
            if isinstance(contestant, Qbridge):
                line["peak_mib"] = round(contestant.peak_mib())
            print(json.dumps(line), flush=True)


main()
