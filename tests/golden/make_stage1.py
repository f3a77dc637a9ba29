#!/usr/bin/env python3
"""Q-Formers with the heads of BLIP-2's first stage, and what the reference makes of them: `golden/stage1/`.

    python tests/golden/make_stage1.py        # torch 2.15.0, transformers 5.23.0; after make_lavis.py, make_instructblip.py

writes

- `checkpoint/`: a small random Blip2ForImageTextRetrieval as transformers saves it, f16, with its tokenizer, to which
  `<image>` is added as in Salesforce/blip2-itm-vit-g;
- `lavis.pth`, `vitL.pth`: Q-Formers as blip2_pretrained.pth and blip2_pretrained_vitL.pth have them, for the towers of
  `lavis/`;
- `NAME.safetensors` (`checkpoint`, `lavis`, `vitL`): features and scores of 20 pairs of picture and text;
- `golden.json`: the texts with their ids, and `lavis`'s captions;
- `names.txt`: names and shapes of Salesforce/blip2-itm-vit-g, from the class on the meta device.

ITC, ITM and the features are those of Blip2ForImageTextRetrieval. It has no head for captions (ITG), so LAVIS's
formulas (`Qformer.py`: BertLMHeadModel under the UniLM mask, the queries' keys and values kept) are written here in plain
PyTorch, `CachedCaptioner`. They are compared, logit by logit, with all rows computed anew for each token by transformers'
own layers under the mask as a 4D tensor, `Captioner`; of that, transformers' `generate` gives the captions, greedy and by
beams. Pictures whose captions change under noise of 2e-4 on the scores are not among those kept.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from make_lavis import CLIP, EVA, QFORMER, TEXT, WORDPIECE, Pool, clip_reference, eva_reference, f32, qformer, trained
from make_vision import values
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

GOLDEN = Path(__file__).resolve().parent
OUT = GOLDEN / "stage1"
PICTURES = ["ramp", "boxes", "circle", "face", "stripes"]
N_PAIRS = 20
MAX_TEXT = 32  # LAVIS, max_txt_len
N_QUERIES = QFORMER["queries"]
FEATURES = 24
NOISE = 2e-4
CANDIDATES = 40  # pictures, of which those are kept whose captions are steady
SEP_BIAS = 4.0  # so that some captions end by themselves
SETTINGS = [
    {"num_beams": 3, "max_tokens": 29, "min_tokens": 9, "length_penalty": 1.0},  # LAVIS's own
    {"num_beams": 1, "max_tokens": 29, "min_tokens": 9, "length_penalty": 1.0},
    {"num_beams": 1, "max_tokens": 29, "min_tokens": 0, "length_penalty": 1.0},
    {"num_beams": 3, "max_tokens": 29, "min_tokens": 0, "length_penalty": 1.0},
    {"num_beams": 5, "max_tokens": 12, "min_tokens": 2, "length_penalty": -1.0},
    {"num_beams": 4, "max_tokens": 12, "min_tokens": 0, "length_penalty": 2.0},
]
TEXTS = [
    "a red circle", "two boxes on a table", "a face", "stripes", "", "A Photo of a CAT!", "a dog and a cat in the street",
    "what is it?", "blue", "the man is ironing clothes on the back of a yellow taxi in a busy city street " * 3,
    "it's a naïve café", "1 2 3 4 5", "a large green square left of a small yellow one", "nothing", "three birds, two trees",
    "woman", "people holding clothes", "a drawing of the house", "x", "a [SEP] b <image> c",
]  # fmt: skip


def wordpiece():
    """BERT's tokenizer of make_instructblip.py as LAVIS has it in the first stage."""
    tokenizer = BertTokenizer.from_pretrained(WORDPIECE, truncation_side="right")
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def padded(ids):
    longest = max(map(len, ids))
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    return torch.tensor([row + [0] * (longest - len(row)) for row in ids]), mask


@torch.no_grad()
def pairs(model, pixels, ids):
    """Features and scores of picture i and text i, of any number of pictures."""
    input_ids, mask = padded(ids)
    n_queries = model.config.num_query_tokens
    image = model.config.image_token_index
    if image is not None:  # as Blip2Processor puts them before a text
        input_ids = torch.cat([torch.full((len(ids), n_queries), image), input_ids], dim=1)
        mask = torch.cat([torch.ones(len(ids), n_queries, dtype=mask.dtype), mask], dim=1)
    inputs = {"pixel_values": pixels, "input_ids": input_ids, "attention_mask": mask}
    itc = model(**inputs)
    # To have the queries beside the logits.
    seen = {}
    hook = model.qformer.register_forward_hook(lambda _, __, output: seen.update(output=output[0]))
    itm = model(**inputs, use_image_text_matching_head=True)
    hook.remove()
    return {
        "image_features": itc.image_embeds.contiguous(),
        "text_features": itc.text_embeds.contiguous(),
        "contrastive": itc.logits_per_image.contiguous(),
        "multimodal": seen["output"][:, :n_queries].contiguous(),
        "match_logits": itm.logits_per_image.contiguous(),
    }


def make_checkpoint(tokenizer):
    """Blip2ForImageTextRetrieval of small sizes, apart from one another."""
    torch.manual_seed(1)
    vocab_size = len(tokenizer)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            vocab_size=vocab_size, max_position_embeddings=40, hidden_size=48, intermediate_size=56, num_hidden_layers=4,
            num_attention_heads=3, encoder_hidden_size=32, use_qformer_text_input=True,
        ).to_dict(),
        num_query_tokens=7,
        image_text_hidden_size=FEATURES,
        image_token_index=vocab_size,
    )  # fmt: skip
    model = Blip2ForImageTextRetrieval(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name.lower():
            parameter.data = torch.randn_like(parameter) * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            parameter.data = torch.randn_like(parameter) * 0.1
        elif "embed" in name or "query_tokens" in name:
            parameter.data = torch.randn_like(parameter) * 0.7
        else:
            parameter.data = torch.randn_like(parameter) * 1.3 / parameter[0].numel() ** 0.5
        parameter.data = parameter.data.half().float()
    path = OUT / "checkpoint"
    model.half().save_pretrained(path)
    model.float()
    processor = BlipImageProcessorPil(size={"height": 28, "width": 28})
    processor.save_pretrained(path)
    tokenizer = wordpiece()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(path)
    images = [Image.open(GOLDEN / f"llm/pictures/{name}.png") for name in PICTURES]
    return model, processor(images, return_tensors="pt")["pixel_values"]


def lavis_state(pool, encoder_width, tokenizer):
    """What blip2_pretrained.pth holds."""
    width = QFORMER["width"]
    state = qformer(pool, encoder_width, True, "unused")
    state = {name: tensor for name, tensor in state.items() if not name.startswith("unused")}
    for name, rows in [("vision_proj", FEATURES), ("text_proj", FEATURES), ("itm_head", 2)]:
        state |= {f"{name}.weight": pool.weight(rows, width), f"{name}.bias": pool.bias(rows)}
    words = "Qformer.bert.embeddings.word_embeddings.weight"
    cls = "Qformer.cls.predictions."
    bias = torch.zeros(TEXT["words"], dtype=pool.noise.dtype)
    bias[tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[MASK]", "[DEC]"])] = -9
    bias[len(tokenizer) :] = -9
    bias[tokenizer.sep_token_id] = SEP_BIAS
    return state | {
        cls + "transform.dense.weight": pool.weight(width, width), cls + "transform.dense.bias": pool.bias(width),
        cls + "transform.LayerNorm.weight": pool.norm(width) * 2, cls + "transform.LayerNorm.bias": pool.bias(width),
        cls + "decoder.weight": state[words], cls + "decoder.bias": bias,
        # As after resize_token_embeddings: left as long as it was, and used by nobody.
        cls + "bias": torch.ones(TEXT["words"] - 1, dtype=bias.dtype),
        "temp": torch.tensor(0.07),
    }  # fmt: skip


class Tower(torch.nn.Module):
    """A vision tower of make_lavis.py in the place of Blip2VisionModel."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, pixel_values, **_):
        return (self.run(pixel_values),)


def retrieval(state, encoder_width, run):
    """LAVIS's tensors in transformers' class."""
    width = QFORMER["width"]
    config = Blip2Config(
        vision_config=Blip2VisionConfig(hidden_size=encoder_width, num_attention_heads=1, num_hidden_layers=1).to_dict(),
        qformer_config=Blip2QFormerConfig(
            vocab_size=TEXT["words"], max_position_embeddings=TEXT["positions"], hidden_size=width,
            intermediate_size=QFORMER["inner"], num_hidden_layers=QFORMER["layers"], num_attention_heads=width // 64,
            encoder_hidden_size=encoder_width, use_qformer_text_input=True,
        ).to_dict(),
        num_query_tokens=N_QUERIES,
        image_text_hidden_size=FEATURES,
    )  # fmt: skip
    model = Blip2ForImageTextRetrieval(config).eval()
    model.vision_model = Tower(run)
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("Qformer.cls.") or name.startswith("ln_vision") or name == "temp" or "position_ids" in name:
            continue
        name = name.replace("Qformer.bert.embeddings.LayerNorm", "qformer.layernorm")
        name = name.replace("Qformer.bert.embeddings.", "embeddings.").replace("Qformer.bert.", "qformer.")
        name = name.replace("vision_proj.", "vision_projection.").replace("text_proj.", "text_projection.")
        renamed[name.replace(".self.", ".attention.")] = tensor
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected and not missing, (missing, unexpected)
    return model


class CachedCaptioner:
    """LAVIS's `BertLMHeadModel` with `query_embeds` and `past_key_values`, of its tensors by their own names."""

    def __init__(self, state):
        self.state = state
        self.heads = QFORMER["width"] // 64

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-12)

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attention(self, name, x, attended, mask, past=None):
        """BertAttention: keys and values behind those of `past`; what it gives is new in `past`'s form."""
        q = self.split(self.linear(f"{name}.self.query", x))
        k, v = (self.split(self.linear(f"{name}.self.{part}", attended)) for part in ("key", "value"))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.norm(f"{name}.output.LayerNorm", self.linear(f"{name}.output.dense", mixed) + x), (k, v)

    def feed_forward(self, layer, suffix, x):
        inner = F.gelu(self.linear(f"{layer}.intermediate{suffix}.dense", x))
        output = self.linear(f"{layer}.output{suffix}.dense", inner)
        return self.norm(f"{layer}.output{suffix}.LayerNorm", output + x)

    def __call__(self, ids, vision, past=None):
        """Logits of the last token of `ids` [batch, tokens]; with `past`, of that token alone."""
        embeddings = "Qformer.bert.embeddings."
        start = 0 if past is None else ids.shape[1] - 1
        text = self.state[embeddings + "word_embeddings.weight"][ids[:, start:]]
        text = text + self.state[embeddings + "position_embeddings.weight"][start : ids.shape[1]]
        if past is None:
            queries = self.state["query_tokens"].expand(len(ids), -1, -1)
            x, n_queries = torch.cat([queries, text], dim=1), queries.shape[1]
            mask = causal(n_queries, ids.shape[1], -10000.0)
        else:
            x, n_queries, mask = text, 0, 0.0
        x = self.norm(embeddings + "LayerNorm", x)
        present = []
        for i in range(QFORMER["layers"]):
            layer = f"Qformer.bert.encoder.layer.{i}"
            x, kept = self.attention(f"{layer}.attention", x, x, mask, past and past[i])
            present.append(kept)
            queries, text = x[:, :n_queries], x[:, n_queries:]
            if n_queries:
                if f"{layer}.crossattention.self.key.weight" in self.state:
                    queries, _ = self.attention(f"{layer}.crossattention", queries, vision, 0.0)
                queries = self.feed_forward(layer, "_query", queries)
            x = torch.cat([queries, self.feed_forward(layer, "", text)], dim=1)
        return head(self.state, x[:, -1]), present


def causal(n_queries, n_text, hidden):
    """The UniLM mask: queries see queries, text sees queries and the text before it."""
    n = n_queries + n_text
    mask = torch.ones(n, n).tril()
    mask[:n_queries, :n_queries] = 1
    return (1 - mask)[None, None] * hidden


def head(state, x):
    """BertLMPredictionHead."""
    cls = "Qformer.cls.predictions."
    x = F.gelu(F.linear(x, state[cls + "transform.dense.weight"], state[cls + "transform.dense.bias"]))
    norm = state[cls + "transform.LayerNorm.weight"], state[cls + "transform.LayerNorm.bias"]
    x = F.layer_norm(x, x.shape[-1:], *norm, 1e-12)
    return F.linear(x, state[cls + "decoder.weight"], state[cls + "decoder.bias"])


class Captioner(PreTrainedModel, GenerationMixin):
    """The same by transformers' layers, all rows anew for each token, for `generate`."""

    config_class = BertConfig
    main_input_name = "input_ids"

    def __init__(self, model, state):
        super().__init__(BertConfig(vocab_size=TEXT["words"], is_decoder=True))
        self.retrieval, self.state = model, state

    def prepare_inputs_for_generation(self, input_ids, vision, **_):
        return {"input_ids": input_ids, "vision": vision}

    def forward(self, input_ids, vision, **_):
        model = self.retrieval
        queries = model.query_tokens.expand(len(input_ids), -1, -1)
        embeds = model.embeddings(input_ids=input_ids, query_embeds=queries)
        mask = causal(queries.shape[1], input_ids.shape[1], torch.finfo(torch.float32).min)
        hidden = model.qformer(
            query_embeds=embeds, query_length=queries.shape[1], encoder_hidden_states=vision,
            attention_mask=mask.expand(len(input_ids), -1, -1, -1),
        ).last_hidden_state  # fmt: skip
        return CausalLMOutput(logits=head(self.state, hidden[:, queries.shape[1] :]))


class Noise(LogitsProcessor):
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids, scores):
        noise = torch.rand(scores.shape, generator=self.generator) * 2 - 1
        return scores + noise * NOISE


def generated(captioner, vision, tokenizer, setting, seed=None):
    begin = torch.full((len(vision), 1), tokenizer.bos_token_id)
    out = captioner.generate(
        input_ids=begin, vision=vision, do_sample=False, use_cache=False, num_beams=setting["num_beams"],
        # Both count [DEC].
        max_length=1 + setting["max_tokens"], min_length=1 + setting["min_tokens"],
        length_penalty=setting["length_penalty"], eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        logits_processor=LogitsProcessorList([] if seed is None else [Noise(seed)]),
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    captions = []
    for row in out.sequences[:, 1:].tolist():
        end = row.index(tokenizer.sep_token_id) + 1 if tokenizer.sep_token_id in row else len(row)
        captions.append(row[:end])
    return captions, getattr(out, "sequences_scores", None)


def steady_captions(captioner, vision, tokenizer):
    """The first pictures whose captions stay the same under noise in every setting, their captions, and of beams the scores."""
    kept, found = set(range(len(vision))), []
    for setting in SETTINGS:
        found.append(generated(captioner, vision, tokenizer, setting))
        for seed in range(2):
            noisy, _ = generated(captioner, vision, tokenizer, setting, seed)
            kept &= {i for i in kept if noisy[i] == found[-1][0][i]}
    kept = sorted(kept)[:N_PAIRS]
    assert len(kept) == N_PAIRS, len(kept)
    captions = [[of_setting[i] for i in kept] for of_setting, _ in found]
    scores = [None if of_setting is None else of_setting[kept].tolist() for _, of_setting in found]
    for setting, of_setting in zip(SETTINGS, captions):
        n_ended = sum(caption[-1] == tokenizer.sep_token_id for caption in of_setting)
        print(setting, len(set(map(tuple, of_setting))), "apart, lengths", sorted(map(len, of_setting)), n_ended, "end")
    return kept, captions, scores


def check_cache(cached, captioner, vision, captions, tokenizer):
    """Logits with kept keys and values, against all rows computed anew."""
    worst = 0.0
    for i, ids in enumerate(captions):
        past, picture = None, vision[i : i + 1]
        ids = [tokenizer.bos_token_id, *ids]
        for n in range(1, len(ids) + 1):
            prefix = torch.tensor([ids[:n]])
            logits, past = cached(prefix, picture, past)
            anew = captioner(prefix, picture).logits[:, -1]
            worst = max(worst, (logits - anew).abs().max().item())
    assert worst < 1e-4, worst
    return worst


def caption_logprobs(captioner, vision, ids, tokenizer):
    """The ITG loss of a text, summed: its first token is [DEC]'s."""
    sums = []
    for i, text in enumerate(ids):
        row = torch.tensor([[tokenizer.bos_token_id, *text[1:]]])
        log_probs = captioner(row, vision[i : i + 1]).logits[0, :-1].log_softmax(-1)
        sums.append(log_probs.gather(1, row[0, 1:, None]).sum())
    return torch.stack(sums)


def names():
    config = Blip2Config(
        qformer_config=Blip2QFormerConfig(vocab_size=30523, use_qformer_text_input=True).to_dict(),
        image_text_hidden_size=256,
    )
    with torch.device("meta"):
        model = Blip2ForImageTextRetrieval(config)
    return "".join(f"{name} {' '.join(map(str, t.shape))}\n" for name, t in model.state_dict().items())


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    (OUT / "names.txt").write_text(names())
    tokenizer = wordpiece()
    texts = {text: tokenizer(text, truncation=True, max_length=MAX_TEXT)["input_ids"] for text in TEXTS}
    assert len(texts) == N_PAIRS and max(map(len, texts.values())) == MAX_TEXT
    ids = list(texts.values())

    model, pixels = make_checkpoint(tokenizer)
    save_file(pairs(model, pixels.repeat_interleave(4, dim=0), ids), OUT / "checkpoint.safetensors")

    golden = {"made_by": "tests/golden/make_stage1.py", "pictures": PICTURES, "texts": texts, "settings": SETTINGS}
    towers = GOLDEN / "lavis"
    for name, seed, sizes, tower_file, make_tower in [
        ("lavis", 9, EVA, "eva_vit_g.pth", eva_reference),
        ("vitL", 10, CLIP, "clip_vit_L.pth", clip_reference),
    ]:
        state = lavis_state(Pool(seed, torch.float16, 62_000), sizes["width"], tokenizer)
        torch.save(trained(state), OUT / f"{name}.pth")
        state = f32(state)
        ln_vision = state["ln_vision.weight"], state["ln_vision.bias"]
        model = retrieval(state, sizes["width"], make_tower(f32(torch.load(towers / tower_file)), ln_vision, 4))
        captioner = Captioner(model, state).eval()
        pixels = torch.from_numpy(np.stack([values(f"pixels.{i}", (3, 16, 16)) for i in range(CANDIDATES)]))
        if name == "lavis":
            kept, captions, golden["scores"] = steady_captions(captioner, model.vision_model(pixels)[0], tokenizer)
            golden["pixels"] = kept
            golden["captions"] = [
                [{"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)} for ids in found]
                for found in captions
            ]
            vision = model.vision_model(pixels[kept])[0]
            worst = check_cache(CachedCaptioner(state), captioner, vision, captions[0], tokenizer)
            print("logits with what is kept and anew differ by", worst)
        n = N_PAIRS if name == "lavis" else 4
        pixels = pixels[golden["pixels"][:n]]
        reference = pairs(model, pixels, ids[:n])
        vision = model.vision_model(pixels)[0]
        reference["caption_logprobs"] = caption_logprobs(captioner, vision, ids[:n], tokenizer)
        save_file(reference, OUT / f"{name}.safetensors")
        spread = {key: round(tensor.std(0).mean().item(), 4) for key, tensor in reference.items()}
        print(name, "standard deviations over pairs", spread)
    text = json.dumps(golden, ensure_ascii=False).replace('[{"ids"', '\n[{"ids"')
    (OUT / "golden.json").write_text(text + "\n")
    print(sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file()), "bytes")


if __name__ == "__main__":
    main()
