"""Makes tests/golden/clip: small random CLIPs, and what transformers makes of pictures and texts with them.

    python3 tests/golden/make_clip.py

needs torch, transformers and pillow (made with torch 2.15, transformers 5.23.0, Pillow 13.0.0). Written are

    NAME/                what CLIPModel and CLIPProcessor save, the weights in f16
    NAME.safetensors     image_features and text_features, of length 1; logits, which are logits_per_image; classes, the
                         features of LABELS in TEMPLATES, and probabilities of them
    pixels.safetensors   each picture as the processor of each NAME crops it, 8 bits, before it is rescaled
    golden.json          the pictures, 20 texts, the ids of 300 strings, LABELS and TEMPLATES
    published.json       names and shapes of OpenAI's four models, of layer 0 for all layers

"openai" is as OpenAI's configs are: end tokens are called 2, and it is the largest id that is read. "gelu" has another
activation, epsilons that can be seen, its end token by its id, and a crop that is smaller than what was resized.
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

GOLDEN = Path(__file__).resolve().parent
OUT = GOLDEN / "clip"
REPOSITORY = GOLDEN.parent.parent
PICTURES = [
    *sorted((REPOSITORY / "demo" / "pictures").glob("*.png")),
    *sorted((GOLDEN / "llm" / "pictures").glob("*.png")),
    *(GOLDEN / "pixels" / name for name in ("tall.png", "wide.png", "thin.png", "line.png", "dot.png", "photo.png", "turned-6.jpg")),
]  # fmt: skip

WORDS = (
    "a photo picture drawing of the dog cat bird rocket pizza banana bicycle penguin sunflower balloons lion umbrella red "
    "green blue yellow two three circle face boxes stripes small large on with and in under it isn't they've we'll"
).split()
LABELS = ["dog", "rocket and pizza", "banana", "red circle", "Lion"]
TEMPLATES = ["a photo of a {}.", "art of the {}", "{}"]
TEXTS = [
    "a dog", "a photo of a dog", "A Photo Of A DOG!", "the banana", "rocket pizza", "two red balloons on a bicycle",
    "a lion under an umbrella", "sunflower", "it isn't a cat", "they've 3 penguins, we'll have 42", "", "  a   cat \n",
    "café größer", "😀", "a drawing of boxes and stripes", "blue face", "the large small circle",
    "picture " * 90, "<|endoftext|> a dog", "東京の写真",
]  # fmt: skip

MODELS = {
    "openai": dict(
        vision=dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=32,
                    patch_size=8),
        text=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
                  max_position_embeddings=77, eos_token_id=2),
        dim=24, logit_scale=4.6052, processor=dict(size={"shortest_edge": 32}, crop_size=32)),
    "gelu": dict(
        vision=dict(hidden_size=40, intermediate_size=72, num_hidden_layers=3, num_attention_heads=5, image_size=45,
                    patch_size=14, hidden_act="gelu", layer_norm_eps=0.05),
        text=dict(hidden_size=36, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3,
                  max_position_embeddings=40, hidden_act="gelu", layer_norm_eps=0.02),
        dim=28, logit_scale=2.0, processor=dict(size={"shortest_edge": 53}, crop_size={"height": 45, "width": 45})),
}  # fmt: skip

PUBLISHED = {
    "openai/clip-vit-base-patch32": dict(vision={}, text={}, dim=512),
    "openai/clip-vit-base-patch16": dict(vision=dict(patch_size=16), text={}, dim=512),
    "openai/clip-vit-large-patch14": dict(
        vision=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14),
        text=dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12), dim=768),
    "openai/clip-vit-large-patch14-336": dict(
        vision=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14,
                    image_size=336),
        text=dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12), dim=768),
}  # fmt: skip


def byte_letters():
    """The letters that stand for bytes, in the order of OpenAI's vocabulary."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) for byte in kept] + [chr(256 + i) for i in range(len(rest))]


def make_tokenizer():
    """All bytes, and merges that spell two of three WORDS as one token."""
    letters = byte_letters()
    vocabulary = letters + [f"{letter}</w>" for letter in letters]
    merges = []
    for i, word in enumerate(WORDS):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > (1 if i % 3 else 2):
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
            parts = ["".join(pair), *parts[2:]]
    vocabulary = list(dict.fromkeys(vocabulary)) + ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: id for id, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=77)


def strings():
    """300 strings of all kinds."""
    chooser = random.Random(3)
    out = [*TEXTS, " ", "\n", "A", "?", "...", "a\x00b", "\ufffd", "\u200b", "\u00a0x", "<|startoftext|>", "<|ENDOFTEXT|>", "<|endoftext",
           "I'M I'm 's 'LL", "ß ẞ SS", "İstanbul ı", "Å Å", "é e\u0301", "ﬁ", "½", "𝒜", "👩‍👩‍👧‍👦", "Привет, мир!", "3.14", "1,000", "a_b", "a-b—c", "x" * 200,
           "-- -", "don't", "U.S.A.", "#hash @at", "\t tabs\t"]  # fmt: skip
    alphabets = ["abcdefghijklm", "ABCDEFÄÖÜÉ", "0123456789.,:;!?'\"()", "àéîõüß", "абвг", "東京写真", "😀🎈🐶", " \t\n  ", "\u0300\u200d"]
    while len(out) < 300:
        if chooser.random() < 0.5:
            words = (chooser.choice([str.upper, str.title, str.lower])(word) for word in chooser.choices(WORDS, k=chooser.randint(1, 12)))
            out.append(chooser.choice([" ", "  ", ", ", "-", "\n"]).join(words))
        else:
            out.append("".join(chooser.choice(chooser.choice(alphabets)) for _ in range(chooser.randint(1, 20))))
    return out


def spread(model, seed):
    """Fresh weights barely move the signal; these do, so that a wrong layer shows."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name == "logit_scale":
            continue
        if "norm" in name or "layrnorm" in name:
            parameter.data = torch.randn_like(parameter) * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            parameter.data = torch.randn_like(parameter) * 0.2
        elif "embedding" in name and "patch" not in name:
            parameter.data = torch.randn_like(parameter)
        else:
            gain = 1.7 if "q_proj" in name or "k_proj" in name else 1.3
            parameter.data = torch.randn_like(parameter) * gain / parameter[0].numel() ** 0.5


def picture(path):
    return ImageOps.exif_transpose(Image.open(path))


def unit(features):
    return features / features.norm(dim=-1, keepdim=True)


@torch.no_grad()
def make(name, spec, tokenizer):
    text = dict(spec["text"], vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.eos_token_id)
    text.setdefault("eos_token_id", tokenizer.eos_token_id)
    config = CLIPConfig(
        text_config=CLIPTextConfig(**text).to_dict(), vision_config=CLIPVisionConfig(**spec["vision"]).to_dict(),
        projection_dim=spec["dim"], logit_scale_init_value=spec["logit_scale"],
    )  # fmt: skip
    model = CLIPModel(config).eval()
    spread(model, seed=len(name))
    model = model.half()
    processor = CLIPImageProcessorPil(**spec["processor"])
    model.save_pretrained(OUT / name)
    tokenizer.save_pretrained(OUT / name)
    processor.save_pretrained(OUT / name)
    model = model.float()
    pictures = [picture(path) for path in PICTURES]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    plain = processor(pictures, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
    length = text["max_position_embeddings"]
    encode = lambda texts: tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")  # noqa: E731
    out = model(pixel_values=pixels, **encode(TEXTS))
    prompts = [template.format(label) for label in LABELS for template in TEMPLATES]
    classes = unit(model.get_text_features(**encode(prompts)).pooler_output).reshape(len(LABELS), len(TEMPLATES), -1)
    classes = unit(classes.mean(1))
    probabilities = (model.logit_scale.exp() * out.image_embeds @ classes.T).softmax(-1)
    tensors = {"image_features": out.image_embeds, "text_features": out.text_embeds, "logits": out.logits_per_image,
               "classes": classes, "probabilities": probabilities}  # fmt: skip
    cosines = out.image_embeds @ out.text_embeds.T
    print(name, tuple(cosines.shape), "cosines from", cosines.min().item(), "to", cosines.max().item(), "std", cosines.std().item())
    save_file({key: value.contiguous() for key, value in tensors.items()}, OUT / f"{name}.safetensors")
    return torch.from_numpy(np.asarray(plain).astype(np.uint8))


def published():
    found = {}
    for name, spec in PUBLISHED.items():
        config = CLIPConfig(
            text_config=CLIPTextConfig(**spec["text"]).to_dict(), vision_config=CLIPVisionConfig(**spec["vision"]).to_dict(),
            projection_dim=spec["dim"],
        )  # fmt: skip
        with torch.device("meta"):
            model = CLIPModel(config)
        found[name] = {
            "config": {"model_type": "clip", "projection_dim": spec["dim"], "vision_config": spec["vision"],
                       "text_config": {**spec["text"], "eos_token_id": 2}},
            "tensors": layer_zero(model.state_dict(), {"vision_model.encoder.layers": config.vision_config.num_hidden_layers,
                                                       "text_model.encoder.layers": config.text_config.num_hidden_layers}),
        }  # fmt: skip
    return found


def layer_zero(tensors, stacks):
    """Shapes by name, without the layers that are shaped as the first, which all are."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for stack, layers in stacks.items():
        first = {name: shape for name, shape in shapes.items() if name.startswith(f"{stack}.0.")}
        assert first
        for layer in range(1, layers):
            for name, shape in first.items():
                assert shapes.pop(name.replace(f"{stack}.0.", f"{stack}.{layer}.")) == shape
        assert not any(name.startswith(f"{stack}.") and name not in first for name in shapes)
    return shapes


def main():
    OUT.mkdir(exist_ok=True)
    assert len(PICTURES) == len(TEXTS) == 20, (len(PICTURES), len(TEXTS))
    tokenizer = make_tokenizer()
    pixels = {name: make(name, spec, tokenizer) for name, spec in MODELS.items()}
    save_file(pixels, OUT / "pixels.safetensors")
    golden = {
        "pictures": [str(path.relative_to(REPOSITORY)) for path in PICTURES],
        "texts": TEXTS,
        "labels": LABELS,
        "templates": TEMPLATES,
        "strings": [[text, tokenizer(text, truncation=True, max_length=77)["input_ids"]] for text in strings()],
    }
    (OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=False).replace('["', '\n["') + "\n")
    (OUT / "published.json").write_text(json.dumps(published(), indent=None).replace('"openai/', '\n"openai/') + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
