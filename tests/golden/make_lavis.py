#!/usr/bin/env python3
"""Small checkpoints in the layouts of LAVIS and MiniGPT-4, and what the reference makes of them.

    python tests/golden/make_lavis.py        # torch 2.15.0, transformers 5.23.0; after make_llm.py

writes, into `tests/golden/lavis/`:

- `eva_vit_g.pth`, `clip_vit_L.pth`: vision towers of 40 and 24 blocks, f16, as state dictionaries;
- `blip2_pretrained_opt.pth`, `blip2_pretrained_opt_vitL.pth`: Q-Former, `ln_vision` and `opt_proj` under `model`,
  f32, beside an optimizer's state;
- `blip2_caption_opt.pth`: the same with a tower of its own for larger pictures;
- `minigpt4.pth`, `minigpt4_llama2.pth`: `llama_proj` alone;
- `opt.gguf`, `mpt.gguf`, `t5.gguf`, `vicuna-v0.gguf`, `vicuna-v1.1.gguf`: headers of language models;
- `minigpt_v2.pth`: `llama_proj` and a LoRA of the Llama of `llm/`;
- `instruct_blip_vicuna.pth`, `instruct_blip_flant5.pth`: a Q-Former that reads text, with `llm_proj` or `t5_proj`;
- `old.pth`: as PyTorch wrote files before 1.6;
- `code.pth`: a pickle that would create a file were it run;
- `NAME.safetensors`: `vision`, `queries` and `soft_prompt` of each model for the pictures of `llm/`, for InstructBLIP
  with each of its instructions, and `interpolated`: position embeddings of the towers at other sizes;
- `golden.json`: greedy answers of MiniGPT-4's kinds before the Llama of `llm/`, and InstructBLIP's instructions.

The towers' weights are windows of a few storages, which torch.save writes once: 40 blocks take no more room than one.
The reference is transformers' Blip2VisionModel and CLIPVisionModel (its last block but one, with LAVIS's `ln_vision`
behind it), Blip2QFormerModel and InstructBlipQFormerModel under Hugging Face's names.
"""

import json
import math
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import gguf
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

GOLDEN = Path(__file__).resolve().parent
OUT = GOLDEN / "lavis"
LLM = GOLDEN / "llm"
WORDPIECE = GOLDEN / "instructblip/checkpoint/qformer_tokenizer"
PATCH = 4
EVA = dict(width=176, inner=48, blocks=40, grid=4)  # heads of 88
CLIP = dict(width=128, inner=40, blocks=24, grid=4)  # heads of 64
QFORMER = dict(width=128, inner=56, layers=3, queries=6)  # heads of 64
TEXT = dict(words=430, positions=160)
LORA_RANK = 8
LORA_ALPHA = 16  # minigpt_v2.py
N_EMBD = 128
LARGER = 24  # pixels; the towers are for 16
MAX_NEW_TOKENS = 16
MIN_GAP = 5e-3


class Pool:
    """Weights as windows of a few storages."""

    def __init__(self, seed, dtype, count, faint=4):
        generator = torch.Generator().manual_seed(seed)
        self.noise = (torch.randn(count, generator=generator) * 0.1).to(dtype)
        self.norms = (1 + torch.randn(1000, generator=generator) * 0.1).to(dtype)
        # What stays small in a residual stream lets ln_vision's epsilon show.
        self.faint_noise = (torch.randn(faint, generator=generator) * 5e-4).to(dtype)
        self.place = 0

    def window(self, storage, shape):
        count = math.prod(shape)
        self.place = (self.place * 31 + 977) % (len(storage) - count + 1)
        return storage[self.place : self.place + count].view(shape)

    def weight(self, *shape):
        return self.window(self.noise, shape)

    def faint(self, *shape):
        return self.window(self.faint_noise, shape)

    def bias(self, width):
        return self.window(self.noise, (width,))

    def norm(self, width):
        return self.window(self.norms, (width,))


def eva(pool, prefix="", grid=None, blocks=None):
    width, inner = EVA["width"], EVA["inner"]
    rows = 1 + (grid or EVA["grid"]) ** 2
    state = {
        "cls_token": pool.faint(1, 1, width),
        "pos_embed": pool.faint(1, rows, width),
        "patch_embed.proj.weight": pool.faint(width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": pool.faint(width),
    }
    for i in range(blocks or EVA["blocks"]):
        block = f"blocks.{i}."
        state |= {
            block + "norm1.weight": pool.norm(width), block + "norm1.bias": pool.bias(width),
            block + "attn.q_bias": pool.bias(width), block + "attn.v_bias": pool.bias(width),
            block + "attn.qkv.weight": pool.weight(3 * width, width),
            block + "attn.proj.weight": pool.faint(width, width), block + "attn.proj.bias": pool.faint(width),
            block + "norm2.weight": pool.norm(width), block + "norm2.bias": pool.bias(width),
            block + "mlp.fc1.weight": pool.weight(inner, width), block + "mlp.fc1.bias": pool.bias(inner),
            block + "mlp.fc2.weight": pool.faint(width, inner), block + "mlp.fc2.bias": pool.faint(width),
        }  # fmt: skip
    # What LAVIS leaves out.
    state |= {"norm.weight": pool.norm(width), "norm.bias": pool.bias(width), "head.weight": pool.weight(10, width)}
    return {prefix + name: tensor for name, tensor in state.items()}


def clip(pool):
    width, inner, rows = CLIP["width"], CLIP["inner"], 1 + CLIP["grid"] ** 2
    state = {
        "class_embedding": pool.bias(width),
        "positional_embedding": pool.weight(rows, width),
        "conv1.weight": pool.weight(width, 3, PATCH, PATCH),
        "ln_pre.weight": pool.norm(width), "ln_pre.bias": pool.bias(width),
        "ln_post.weight": pool.norm(width), "ln_post.bias": pool.bias(width),
        "proj": pool.weight(width, 32),
    }  # fmt: skip
    for i in range(CLIP["blocks"]):
        block = f"transformer.resblocks.{i}."
        state |= {
            block + "ln_1.weight": pool.norm(width), block + "ln_1.bias": pool.bias(width),
            block + "attn.in_proj_weight": pool.weight(3 * width, width),
            block + "attn.in_proj_bias": pool.bias(3 * width),
            block + "attn.out_proj.weight": pool.weight(width, width),
            block + "attn.out_proj.bias": pool.bias(width),
            block + "ln_2.weight": pool.norm(width), block + "ln_2.bias": pool.bias(width),
            block + "mlp.c_fc.weight": pool.weight(inner, width), block + "mlp.c_fc.bias": pool.bias(inner),
            block + "mlp.c_proj.weight": pool.weight(width, inner),
            block + "mlp.c_proj.bias": pool.bias(width),
        }  # fmt: skip
    return state


def qformer(pool, encoder_width, reads_text=False, projection="opt_proj"):
    width, inner = QFORMER["width"], QFORMER["inner"]

    def dense(name, rows, columns):
        return {f"{name}.weight": pool.weight(rows, columns), f"{name}.bias": pool.bias(rows)}

    def norm(name, width):
        return {f"{name}.weight": pool.norm(width), f"{name}.bias": pool.bias(width)}

    state = {"query_tokens": pool.weight(1, QFORMER["queries"], width)}
    state |= norm("ln_vision", encoder_width) | norm("Qformer.bert.embeddings.LayerNorm", width)
    for i in range(QFORMER["layers"]):
        layer = f"Qformer.bert.encoder.layer.{i}."
        attentions = [("attention", width)] + [("crossattention", encoder_width)] * (i % 2 == 0)
        for name, keys in attentions:
            state |= dense(f"{layer}{name}.self.query", width, width)
            state |= dense(f"{layer}{name}.self.key", width, keys)
            state |= dense(f"{layer}{name}.self.value", width, keys)
            state |= dense(f"{layer}{name}.output.dense", width, width)
            state |= norm(f"{layer}{name}.output.LayerNorm", width)
        for branch in ["_query"] + [""] * reads_text:
            state |= dense(f"{layer}intermediate{branch}.dense", inner, width)
            state |= dense(f"{layer}output{branch}.dense", width, inner)
            state |= norm(f"{layer}output{branch}.LayerNorm", width)
    if reads_text:
        for table, rows in [("word", TEXT["words"]), ("position", TEXT["positions"])]:
            state |= {f"Qformer.bert.embeddings.{table}_embeddings.weight": pool.weight(rows, width)}
    state |= {"Qformer.bert.embeddings.position_ids": torch.arange(512)[None]}
    state |= dense(projection, N_EMBD, width)
    return state


def lora(pool):
    """Of MiniGPT-v2's layers, small enough to be a change and large enough to show."""
    config = json.loads((LLM / "checkpoint/config.json").read_text())["text_config"]
    width, head = config["hidden_size"], config["head_dim"]
    state = {}
    for i in range(config["num_hidden_layers"]):
        for name, heads in [("q_proj", config["num_attention_heads"]), ("v_proj", config["num_key_value_heads"])]:
            layer = f"llama_model.base_model.model.model.layers.{i}.self_attn.{name}"
            state[f"{layer}.lora_A.default.weight"] = pool.weight(LORA_RANK, width)
            state[f"{layer}.lora_B.default.weight"] = pool.weight(heads * head, LORA_RANK)
    return state


def trained(state):
    """As a training program saves it, an optimizer's state beside the model."""
    moments = {i: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(3)} for i in range(2)}
    groups = [{"lr": 1e-5, "betas": (0.9, 0.999), "params": [0, 1], "foreach": None, "fused": True}]
    return {"model": state, "optimizer": {"state": moments, "param_groups": groups}, "epoch": 3, "config": {"a": ["b"]}}


# ---- the reference ----


def f32(state):
    return {name: tensor.float() for name, tensor in state.items()}


def eva_reference(tower, ln_vision, grid):
    width = EVA["width"]
    config = Blip2VisionConfig(
        hidden_size=width, intermediate_size=EVA["inner"], num_hidden_layers=39, num_attention_heads=width // 88,
        image_size=grid * PATCH, patch_size=PATCH, layer_norm_eps=1e-6,
    )  # fmt: skip
    model = Blip2VisionModel(config).eval()
    state = {
        "embeddings.class_embedding": tower["cls_token"],
        "embeddings.position_embedding": tower["pos_embed"],
        "embeddings.patch_embedding.weight": tower["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": tower["patch_embed.proj.bias"],
        "post_layernorm.weight": ln_vision[0],
        "post_layernorm.bias": ln_vision[1],
    }
    for i in range(39):
        a, b = f"blocks.{i}.", f"encoder.layers.{i}."
        state[b + "self_attn.qkv.bias"] = torch.cat(
            [tower[a + "attn.q_bias"], torch.zeros(width), tower[a + "attn.v_bias"]]
        )
        state[b + "self_attn.qkv.weight"] = tower[a + "attn.qkv.weight"]
        for theirs, ours in [("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("attn.proj", "self_attn.projection"),
                             ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")]:  # fmt: skip
            for part in ("weight", "bias"):
                state[f"{b}{ours}.{part}"] = tower[f"{a}{theirs}.{part}"]
    model.load_state_dict(state, strict=True)
    model.post_layernorm.eps = 1e-5
    return lambda pixels: model(pixels).last_hidden_state


def clip_reference(tower, ln_vision, grid):
    width = CLIP["width"]
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=CLIP["inner"], num_hidden_layers=24, num_attention_heads=width // 64,
        image_size=grid * PATCH, patch_size=PATCH, hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=32,
    )  # fmt: skip
    model = CLIPVisionModel(config).eval()
    state = {
        "embeddings.class_embedding": tower["class_embedding"],
        "embeddings.position_embedding.weight": tower["positional_embedding"],
        "embeddings.patch_embedding.weight": tower["conv1.weight"],
    }
    for theirs, ours in [("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")]:
        for part in ("weight", "bias"):
            state[f"{ours}.{part}"] = tower[f"{theirs}.{part}"]
    for i in range(24):
        a, b = f"transformer.resblocks.{i}.", f"encoder.layers.{i}."
        for part in ("weight", "bias"):
            split = tower[f"{a}attn.in_proj_{part}"].chunk(3)
            for name, tensor in zip("qkv", split):
                state[f"{b}self_attn.{name}_proj.{part}"] = tensor
            for theirs, ours in [("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"),
                                 ("mlp.c_proj", "mlp.fc2"), ("attn.out_proj", "self_attn.out_proj")]:  # fmt: skip
                state[f"{b}{ours}.{part}"] = tower[f"{a}{theirs}.{part}"]
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in model.state_dict()) else ""
    missing, unexpected = model.load_state_dict({prefix + k: v for k, v in state.items()}, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing), (missing, unexpected)

    def run(pixels):
        hidden = model(pixels, output_hidden_states=True).hidden_states[23]
        return F.layer_norm(hidden, (width,), *ln_vision, eps=1e-5)

    return run


def qformer_reference(state, encoder_width):
    width = QFORMER["width"]
    config = Blip2QFormerConfig(
        hidden_size=width, intermediate_size=QFORMER["inner"], num_hidden_layers=QFORMER["layers"],
        num_attention_heads=width // 64, encoder_hidden_size=encoder_width, cross_attention_frequency=2,
    )  # fmt: skip
    model = Blip2QFormerModel(config).eval()
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("Qformer.bert.") and "position_ids" not in name:
            name = name.removeprefix("Qformer.bert.").replace("embeddings.LayerNorm", "layernorm")
            renamed[name.replace(".self.", ".attention.")] = tensor
    model.load_state_dict(renamed, strict=True)
    return lambda vision: model(
        query_embeds=state["query_tokens"].expand(len(vision), -1, -1), encoder_hidden_states=vision
    ).last_hidden_state


def instruct_reference(state, encoder_width):
    width = QFORMER["width"]
    config = InstructBlipQFormerConfig(
        hidden_size=width, intermediate_size=QFORMER["inner"], num_hidden_layers=QFORMER["layers"],
        num_attention_heads=width // 64, encoder_hidden_size=encoder_width, cross_attention_frequency=2,
        vocab_size=TEXT["words"], max_position_embeddings=TEXT["positions"],
    )  # fmt: skip
    model = InstructBlipQFormerModel(config).eval()
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("Qformer.bert.") and "position_ids" not in name:
            name = name.removeprefix("Qformer.bert.").replace("embeddings.LayerNorm", "embeddings.layernorm")
            renamed[name.replace(".self.", ".attention.")] = tensor
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected and missing in ([], ["embeddings.position_ids"]), (missing, unexpected)
    queries = state["query_tokens"]

    def run(vision, ids):
        ids = torch.tensor([ids]).expand(len(vision), -1)
        return model(
            input_ids=ids, attention_mask=torch.ones(len(vision), queries.shape[1] + ids.shape[1]),
            query_embeds=queries.expand(len(vision), -1, -1), encoder_hidden_states=vision,
        ).last_hidden_state[:, : queries.shape[1]]  # fmt: skip

    return run


INSTRUCTIONS = ["", "What colour is it?", " ".join(f"{i} pictures and" for i in range(70))]


def wordpiece():
    """As LAVIS makes it of BERT's: `[DEC]` added, texts cut on the left to 128 tokens."""
    tokenizer = BertTokenizer.from_pretrained(WORDPIECE, truncation_side="left")
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return [tokenizer(text, truncation=True, max_length=128)["input_ids"] for text in INSTRUCTIONS]


def resized(positions, grid, align_corners):
    """`interpolate_pos_embed` of LAVIS: [1 + n * n, width] to [1 + grid * grid, width]."""
    side = math.isqrt(len(positions) - 1)
    patches = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=align_corners)
    return torch.cat([positions[:1], patches.permute(0, 2, 3, 1).flatten(1, 2)[0]])


def pixels(size):
    processor = BlipImageProcessorPil(size={"height": size, "width": size})
    names = json.loads((LLM / "golden.json").read_text())["pictures"]
    images = [Image.open(LLM / f"pictures/{name}.png") for name in names]
    return names, processor(images, return_tensors="pt")["pixel_values"]


def language_model():
    config = json.loads((LLM / "checkpoint/config.json").read_text())["text_config"]
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "model_type"})).eval()
    weights = load_file(LLM / "checkpoint/model.safetensors")
    prefix = "language_model."
    weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    model.load_state_dict(weights, strict=True)
    return model


SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)
LAYOUTS = {  # with <s> where the token goes
    "minigpt4": "<s>" + SYSTEM + "###Human: <Img><ImageHere></Img> {}###Assistant: ",
    "minigpt4_llama2": "<s>" + SYSTEM + "<s>[INST] <Img><ImageHere></Img> {} [/INST] ",
    "minigpt_v2": "<s><s>[INST] <Img><ImageHere></Img> {} [/INST]",
}
QUESTIONS = ["what colour is it?", "Describe the shape", "it's two circles; a line", "how many are there?", "1 + 1"]


def answers(model, tokenizer, layout, names, soft_prompts):
    """Greedy answers; those whose every choice is well apart from its runner-up."""
    cases = []
    for name, soft_prompt in zip(names, soft_prompts):
        for question in QUESTIONS:
            before, after = LAYOUTS[layout].format(question).split("<ImageHere>")
            ids = [tokenizer.encode(part, add_special_tokens=False) for part in (before, after)]
            assert ids[0][0] == tokenizer.bos_token_id
            embed = model.get_input_embeddings()
            rows = [embed(torch.tensor(ids[0])), soft_prompt, embed(torch.tensor(ids[1]))]
            out = model.generate(
                inputs_embeds=torch.cat(rows)[None], max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            top = torch.cat(out.logits).topk(2).values
            if (top[:, 0] - top[:, 1]).min() < MIN_GAP:
                continue
            cases.append({
                "picture": name, "question": question, "answer_ids": out.sequences[0].tolist(),
                "prompt_rows": sum(len(row) for row in rows),
            })  # fmt: skip
    return cases


# OPT's: its layout stops on token 50118.
N_VOCAB = 50272


def header(path, architecture, name, *tensors, model_type=None):
    """A GGUF that says what it is, and holds little."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    if model_type:
        writer.add_string("qbridge.model_type", model_type)
    writer.add_context_length(64)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(1)
    writer.add_vocab_size(N_VOCAB)
    for tensor in ("token_embd.weight", *tensors):
        writer.add_tensor(tensor, torch.zeros(2, N_EMBD).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Code:
    def __reduce__(self):
        return os.system, ("touch it-was-run",)


def write_code(path):
    """As torch.save writes it; read by torch.load, it would run `touch it-was-run`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("code/data.pkl", pickle.dumps({"model": {"query_tokens": Code()}}, protocol=2))
        archive.writestr("code/version", "3\n")


def merge(model, change):
    for name, down in change.items():
        if ".lora_A." not in name:
            continue
        up = change[name.replace(".lora_A.", ".lora_B.")]
        target = name.removeprefix("llama_model.base_model.model.").split(".lora_A.")[0]
        model.get_submodule(target).weight += LORA_ALPHA / LORA_RANK * (up @ down)


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    eva_state = eva(Pool(1, torch.float16, 100_000, faint=32_000))
    clip_state = clip(Pool(2, torch.float16, 52_000))
    opt_state = qformer(Pool(3, torch.float32, 26_000), EVA["width"])
    opt_vitl_state = qformer(Pool(4, torch.float32, 20_000), CLIP["width"])
    caption_state = dict(opt_state) | eva(Pool(5, torch.float16, 100_000, faint=32_000), "visual_encoder.", LARGER // PATCH, 39)
    pool = Pool(6, torch.float16, 92_000)
    minigpt4 = {
        "llama_proj.weight": pool.weight(N_EMBD, QFORMER["width"]).float(),
        "llama_proj.bias": pool.bias(N_EMBD).float(),
    }
    llama2 = {"llama_proj.weight": pool.weight(N_EMBD, 4 * EVA["width"]), "llama_proj.bias": pool.bias(N_EMBD)}
    torch.save(eva_state, OUT / "eva_vit_g.pth")
    torch.save(clip_state, OUT / "clip_vit_L.pth")
    torch.save(trained(opt_state), OUT / "blip2_pretrained_opt.pth")
    torch.save(trained(opt_vitl_state), OUT / "blip2_pretrained_opt_vitL.pth")
    torch.save(trained(caption_state), OUT / "blip2_caption_opt.pth")
    torch.save(trained(minigpt4), OUT / "minigpt4.pth")
    torch.save(trained(llama2), OUT / "minigpt4_llama2.pth")
    header(OUT / "opt.gguf", "mpt", "OPT", "blk.0.ffn.act.scales", model_type="opt")
    header(OUT / "mpt.gguf", "mpt", "OPT without what makes a ReLU of a GELU")
    header(OUT / "t5.gguf", "t5", "Flan T5")
    header(OUT / "vicuna-v0.gguf", "llama", "vicuna-7b-v0")
    header(OUT / "vicuna-v1.1.gguf", "llama", "Vicuna 7B v1.1")
    write_code(OUT / "code.pth")
    change = lora(Pool(7, torch.float32, 4_000))
    torch.save(trained(llama2 | change), OUT / "minigpt_v2.pth")
    text_state = qformer(Pool(8, torch.float16, 56_000), EVA["width"], True, "llm_proj")
    torch.save(trained(text_state), OUT / "instruct_blip_vicuna.pth")
    t5_state = {name.replace("llm_proj", "t5_proj"): tensor for name, tensor in text_state.items()}
    torch.save(trained(t5_state), OUT / "instruct_blip_flant5.pth")
    torch.save({"query_tokens": torch.zeros(1, 2, 64)}, OUT / "old.pth", _use_new_zipfile_serialization=False)

    eva_state, clip_state, caption_state, llama2 = f32(eva_state), f32(clip_state), f32(caption_state), f32(llama2)
    caption_tower = {k.removeprefix("visual_encoder."): v for k, v in caption_state.items() if k.startswith("visual")}
    larger = LARGER // PATCH
    at = {
        "eva": resized(eva_state["pos_embed"][0], larger, False),
        "clip": resized(clip_state["positional_embedding"], larger, True),
    }
    interpolated = {
        f"{name}_{grid}": resized(positions, grid, align)
        for name, positions, align in [
            ("eva", eva_state["pos_embed"][0], False),
            ("clip", clip_state["positional_embedding"], True),
        ]
        for grid in (2, 3, 6, 7)
    }
    save_file(interpolated, OUT / "interpolated.safetensors")

    def ln_vision(state):
        return state["ln_vision.weight"], state["ln_vision.bias"]

    golden = {"made_by": "tests/golden/make_lavis.py", "max_new_tokens": MAX_NEW_TOKENS}
    model, tokenizer = language_model(), AutoTokenizer.from_pretrained(LLM / "checkpoint")
    ones = (torch.ones(EVA["width"]), torch.zeros(EVA["width"]))
    models = {
        "opt": (eva_reference(eva_state, ln_vision(opt_state), 4), opt_state, "opt_proj", 16),
        "opt_24": (eva_reference(eva_state | {"pos_embed": at["eva"][None]}, ln_vision(opt_state), larger),
                   opt_state, "opt_proj", LARGER),
        "opt_vitL": (clip_reference(clip_state, ln_vision(opt_vitl_state), 4), opt_vitl_state, "opt_proj", 16),
        "opt_vitL_24": (clip_reference(clip_state | {"positional_embedding": at["clip"]}, ln_vision(opt_vitl_state),
                                       larger), opt_vitl_state, "opt_proj", LARGER),
        "caption": (eva_reference(caption_tower, ln_vision(caption_state), larger), caption_state, "opt_proj", LARGER),
        "minigpt4": (eva_reference(eva_state, ln_vision(opt_state), 4), opt_state | minigpt4, "llama_proj", 16),
        "minigpt4_llama2": (eva_reference(eva_state, ones, 4), llama2, "llama_proj", 16),
        "minigpt_v2": (eva_reference(eva_state | {"pos_embed": at["eva"][None]}, ones, larger), llama2, "llama_proj",
                       LARGER),
    }  # fmt: skip
    for name, (tower, state, projection, size) in models.items():
        names, batch = pixels(size)
        vision = tower(batch)
        if "query_tokens" in state:
            queries = qformer_reference(state, vision.shape[-1])(vision)
        else:
            queries = vision[:, 1:].reshape(len(vision), -1, 4 * vision.shape[-1])
        soft_prompt = F.linear(queries, state[f"{projection}.weight"], state[f"{projection}.bias"])
        print(name, vision.shape, queries.shape, "apart by",
              [round((x[0] - x[1]).abs().max().item(), 3) for x in (vision, queries, soft_prompt)])  # fmt: skip
        kept = slice(0, 2)
        save_file({"vision": vision[:1].clone(), "queries": queries[kept].clone(),
                   "soft_prompt": soft_prompt[kept].clone()}, OUT / f"{name}.safetensors")  # fmt: skip
        golden["pictures"] = names
        if name == "minigpt_v2":
            merge(model, change)
        if name in LAYOUTS:
            golden[name] = answers(model, tokenizer, name, names, soft_prompt)
            print(name, len(golden[name]), "answers,", len({str(c["answer_ids"]) for c in golden[name]}), "apart")
    text_state = f32(text_state)
    vision = eva_reference(eva_state, ln_vision(text_state), 4)(pixels(16)[1][:2])
    read = instruct_reference(text_state, EVA["width"])
    queries = torch.stack([read(vision, ids) for ids in wordpiece()])
    soft_prompt = F.linear(queries, text_state["llm_proj.weight"], text_state["llm_proj.bias"])
    print("instruct apart by", [(queries[0] - other).abs().max().item() for other in queries[1:]])
    save_file({"vision": vision[:1].clone(), "queries": queries, "soft_prompt": soft_prompt}, OUT / "instruct.safetensors")
    golden["instructions"] = INSTRUCTIONS
    (OUT / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(sum(path.stat().st_size for path in OUT.iterdir()), "bytes")


if __name__ == "__main__":
    main()
