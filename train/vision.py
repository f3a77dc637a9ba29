"""The frozen vision tower of the demo checkpoint: pictures to [257, 384] features."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import Blip2VisionConfig, Blip2VisionModel

TOKENS, WIDTH = 257, 384
MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])


def load_vision(checkpoint: Path, device: torch.device) -> Blip2VisionModel:
    """The vision tower of a checkpoint that demo/make_checkpoint.py wrote, float32, in evaluation mode.

    Its post_layernorm only normalizes here: scale and shift belong to the bridge (model.Bridge)."""
    config = json.loads((checkpoint / "config.json").read_text())["vision_config"]
    model = Blip2VisionModel(Blip2VisionConfig(**config))
    prefix = "vision_model."
    tensors = load_file(checkpoint / "model.safetensors")
    model.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    nn.init.ones_(model.post_layernorm.weight)
    nn.init.zeros_(model.post_layernorm.bias)
    return model.eval().requires_grad_(False).to(device)


def pixels(pictures: list[Image.Image]) -> torch.Tensor:
    """RGB pictures to normalized [batch, 3, 224, 224], as BlipImageProcessor does."""
    arrays = [np.asarray(p if p.size == (224, 224) else p.resize((224, 224), Image.BICUBIC)) for p in pictures]
    values = torch.from_numpy(np.stack(arrays)).float() / 255
    return ((values - MEAN) / STD).permute(0, 3, 1, 2)


@torch.no_grad()
def features(model: Blip2VisionModel, pictures: list[Image.Image]) -> torch.Tensor:
    """[batch, 257, 384] float16 on the CPU, after post_layernorm; computed in the model's dtype."""
    weight = next(model.parameters())
    hidden = model(pixels(pictures).to(weight.device, weight.dtype)).last_hidden_state
    return hidden.half().cpu()
