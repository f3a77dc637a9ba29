"""Makes tests/golden/layouts: a small random checkpoint of each layout, and what transformers answers with it.

    python3 tests/golden/make_layouts.py [NAME ...]

needs torch and transformers (made with torch 2.15, transformers 5.23.0); after make_llm.py, make_convert_llm.py,
make_instructblip.py and make_lavis.py. Written are, for each NAME,

    NAME/                     the checkpoint that save_pretrained wrote, in f16, without the language model's tokenizer,
                              which is one of convert_llm/tokenizers; of MiniGPT-4 its `.pth`
    vicuna-v0/                the language model of MiniGPT-4, in f16
    NAME.json                 20 pairs of picture and text: the prompt's ids, and answers for each of SETTINGS
    NAME.safetensors          vision [1, rows, width] of the first; queries and soft_prompt [5, ...], of a Q-Former that reads the text
                              [20, ...]; first_logits [20, vocabulary], for T5 first_logits_table beside them

Pictures are those of make_llm.py; MiniGPT-4's ViT and Q-Former are those of make_lavis.py.

The seed is searched. All answers are those of `generate` in f32, the T5s' with the exact GELU that BLIP-2 runs them with.
Noise of `noise` laid over the scores of every step changes none of them, and the likeliest token of a greedy answer leads
by `smallest_gap` at least, the best of the beams by `smallest_beam_gap` in its score. llama.cpp computes T5's GELU by the tanh formula from a table in f16; with that instead, all
answers are the same.
"""

import json
import random
import shutil
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    GenerationConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.utils import logging
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

import make_lavis
from make_t5 import set_gelu

GOLDEN = Path(__file__).resolve().parent
OUT = GOLDEN / "layouts"
PICTURES = GOLDEN / "llm" / "pictures"
TOKENIZERS = GOLDEN / "convert_llm" / "tokenizers"
WORDPIECE = GOLDEN / "instructblip" / "checkpoint" / "qformer_tokenizer"
IMAGE_SIZE, WIDTH, N_EMBD, N_QUERIES = 56, 32, 40, 6
MAX_NEW_TOKENS = 16
PER_PICTURE = 4
# What LAVIS's `generate` does by itself, VQA as in BLIP-2's paper, and the penalty of InstructBLIP's model card.
SETTINGS = [
    {"num_beams": 1},
    {"num_beams": 5, "length_penalty": 1.0, "min_new_tokens": 1},
    {"num_beams": 5, "length_penalty": -1.0},
    {"num_beams": 5, "length_penalty": 1.0, "repetition_penalty": 1.5, "min_new_tokens": 8},
]
# The second of them is what the checkpoints' generation_config.json says.
DEFAULTS = SETTINGS[1]
LENGTHS = [0, 1, 2, 4, 7, 11, 16, 24, 33, 50, 64, 77, 100, 128, 163, 200]
WORDS = (
    "what which where how many is are the a of in on this that picture colour shape red green blue dog cat bird car bus "
    "man woman beach street city answer question short description please write sitting with and two three café größer"
).split()


class Spec:
    """One layout: how its checkpoint is made and how it reads a text."""

    instruct = False
    t5 = False
    # Two implementations in f32 differ by some 1e-5.
    noise, min_gap, min_beam_gap = 2e-4, 5e-3, 4e-4
    ends = [2]
    shard = "5GB"
    # Those before were tried.
    first_seed = 0

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def count(self, text):
        return len(self.encode(text))


def spread(model, seed):
    """Fresh weights barely move the signal; these do, so that a wrong layer shows."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        leaf = f".{name}".split(".")[-2]
        if "norm" in name.lower():
            noise = torch.randn_like(parameter) * 0.1
            parameter.data = noise + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            parameter.data = torch.randn_like(parameter) * 0.1
            if name.endswith("qkv.bias"):
                third = len(parameter) // 3
                parameter.data[third : 2 * third] = 0.0
        elif "relative_attention_bias" in name:
            parameter.data = torch.randn_like(parameter)
        elif "language_model" not in name and ("embed" in name or "query_tokens" in name):
            parameter.data = torch.randn_like(parameter) * (0.5 if "vision" in name else 1.0)
        elif "embed" in name or "shared" in name:
            parameter.data = torch.randn_like(parameter) * 0.5
        elif "lm_head" in name:
            parameter.data = torch.randn_like(parameter) * 2.0 / N_EMBD**0.5
        else:
            gain = 1.6 if "language_model" in name else 1.3
            if "DenseReluDense" in name or leaf in ("q", "k", "v", "o"):
                # T5's attention is not scaled by its head size. What the decoder attends to must outweigh its last
                # token, or every answer is one token over and over.
                gains = {"q": 0.6, "k": 0.6}
                if "EncDecAttention" in name:
                    gains = {"q": 0.9, "k": 0.9, "o": 6.0}
                elif "decoder" in name:
                    gains = {"q": 0.6, "k": 0.6, "o": 3.6}
                gain = gains.get(leaf, 1.2)
            parameter.data = torch.randn_like(parameter) * gain / parameter[0].numel() ** 0.5
    if hasattr(model, "vision_model"):
        model.vision_model.embeddings.patch_embedding.weight.data *= 1.5


def vision_config():
    return dict(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                image_size=IMAGE_SIZE, patch_size=14)  # fmt: skip


def qformer_config():
    return dict(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                encoder_hidden_size=WIDTH)  # fmt: skip


def opt_config():
    return OPTConfig(
        vocab_size=512, hidden_size=N_EMBD, word_embed_proj_dim=N_EMBD, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256, bos_token_id=2, eos_token_id=BlipOpt.ends[0], pad_token_id=1,
    )  # fmt: skip


def t5_config():
    # As Salesforce/blip2-flan-t5-*: the exact GELU, whatever "gated-gelu" stands for elsewhere.
    return T5Config(
        vocab_size=224, d_model=N_EMBD, d_kv=8, num_heads=4, d_ff=32, num_layers=2, feed_forward_proj="gated-gelu",
        dense_act_fn="gelu", is_gated_act=True, tie_word_embeddings=False, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, n_positions=1024, dropout_rate=0.0,
    )  # fmt: skip


def llama_config(**ids):
    return LlamaConfig(
        vocab_size=512, hidden_size=N_EMBD, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=2048, rms_norm_eps=1e-6, tie_word_embeddings=False, **ids,
    )  # fmt: skip


class HuggingFace(Spec):
    def make(self, seed):
        common = dict(text_config=self.text_config().to_dict(), num_query_tokens=N_QUERIES, image_token_index=self.image)
        if self.instruct:
            model = InstructBlipForConditionalGeneration(InstructBlipConfig(
                vision_config=InstructBlipVisionConfig(**vision_config()).to_dict(),
                qformer_config=InstructBlipQFormerConfig(
                    **qformer_config(), vocab_size=427, max_position_embeddings=202
                ).to_dict(), **common,
            ))  # fmt: skip
        else:
            model = Blip2ForConditionalGeneration(Blip2Config(
                vision_config=Blip2VisionConfig(**vision_config()).to_dict(),
                qformer_config=Blip2QFormerConfig(**qformer_config(), vocab_size=32).to_dict(), **common,
            ))  # fmt: skip
        spread(model, seed)
        self.shape_head(model.language_model)
        directory = OUT / self.name
        shutil.rmtree(directory, ignore_errors=True)
        model.half().save_pretrained(directory, max_shard_size=self.shard)
        BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(directory)
        # What `generate` of a published model is told by the file beside it.
        GenerationConfig(**DEFAULTS, max_new_tokens=MAX_NEW_TOKENS).save_pretrained(directory)
        if self.instruct:
            shutil.copytree(WORDPIECE, directory / "qformer_tokenizer")
        self.model = type(model).from_pretrained(directory, dtype=torch.float32).eval()
        for name, value in model.state_dict().items():
            assert torch.equal(value.float(), self.model.state_dict()[name]), name
        # Its text model's own defaults, not those of the file, meet what a case asks for.
        defaults = GenerationConfig(decoder_start_token_id=0) if self.t5 else GenerationConfig()
        self.model.generation_config = self.model.language_model.generation_config = defaults
        self.processor = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})

    def pixels(self, names):
        return self.processor([Image.open(PICTURES / f"{name}.png") for name in names], return_tensors="pt")["pixel_values"]

    def inputs(self, pixels, text):
        ids = self.prompt(self.encode(text))
        input_ids = torch.tensor([[self.image] * N_QUERIES + ids])
        inputs = dict(pixel_values=pixels[None], input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
        if self.instruct:
            encoded = self.wordpiece(text, truncation=True, return_tensors="pt")
            inputs |= dict(qformer_input_ids=encoded["input_ids"], qformer_attention_mask=encoded["attention_mask"])
        return ids, inputs

    def stages(self, inputs):
        if self.instruct:
            keys = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
            features = self.model.get_image_features(*[inputs[key] for key in keys])
            queries = features.qformer_outputs.last_hidden_state[:, :N_QUERIES]
            return features.last_hidden_state[0], queries[0], features.pooler_output[0]
        vision = self.model.vision_model(inputs["pixel_values"]).last_hidden_state
        queries = self.model.qformer(query_embeds=self.model.query_tokens, encoder_hidden_states=vision).last_hidden_state
        return vision[0], queries[0], self.model.language_projection(queries)[0]

    def generate(self, inputs, **options):
        return self.model.generate(**inputs, eos_token_id=self.ends, pad_token_id=self.pad, **options)


class BlipOpt(HuggingFace):
    name, text_config, image, pad = "blip2_opt", staticmethod(opt_config), 500, 1
    tokenizer = Tokenizer.from_file(str(TOKENIZERS / "byte_level" / "tokenizer.json"))
    # OPT's answers end at a line break.
    ends = [tokenizer.token_to_id("Ċ")]
    shard, first_seed = "90KB", 2

    def prompt(self, ids):
        return [2, *ids]

    def shape_head(self, language_model):
        embeddings = language_model.model.decoder.embed_tokens.weight
        embeddings.data *= 0.8
        embeddings.data[self.ends[0]] *= 1.6
        # `</s>` would end an answer of qbridge's, and `<image>` none of transformers'.
        embeddings.data[[0, 1, 2, 3, self.image]] *= 0.1


class BlipT5(HuggingFace):
    name, text_config, pad, t5 = "blip2_t5", staticmethod(t5_config), 0, True
    tokenizer = Tokenizer.from_file(str(TOKENIZERS / "unigram" / "tokenizer.json"))
    image = tokenizer.token_to_id("<image>")
    ends = [1]
    # With the table of its own, llama.cpp is some 3e-4 off.
    noise, min_gap, min_beam_gap = 1e-3, 5e-3, 1e-3
    first_seed = 2

    def prompt(self, ids):
        return [*ids, 1]

    def shape_head(self, language_model):
        # Flan-T5's head is not its embeddings, though transformers makes a new one so.
        head = torch.nn.Parameter(torch.randn_like(language_model.shared.weight) * 1.2 / N_EMBD**0.5)
        language_model.lm_head.weight = head
        head.data[1] *= 1.8
        head.data[[0, 2, self.image]] *= 0.1


class InstructLlama(HuggingFace):
    # The ids of Salesforce/instructblip-vicuna-7b's config, which are not those of its tokenizer.
    name, instruct, pad = "instructblip_llama", True, 0
    tokenizer = Tokenizer.from_file(str(TOKENIZERS / "sentencepiece" / "tokenizer.json"))
    image = tokenizer.token_to_id("<image>")
    wordpiece = PreTrainedTokenizerFast.from_pretrained(WORDPIECE)

    def text_config(self):
        return llama_config(bos_token_id=0, eos_token_id=1, pad_token_id=-1)

    def count(self, text):
        return len(self.wordpiece.encode(text, add_special_tokens=False, truncation=False))

    def prompt(self, ids):
        return [2, *ids]

    def shape_head(self, language_model):
        language_model.lm_head.weight.data[2] *= 1.8
        # llama.cpp counts [PAD] among the ends of an answer.
        language_model.lm_head.weight.data[[0, 1, 500, 501, 502]] *= 0.1


class InstructT5(BlipT5):
    name, instruct = "instructblip_t5", True
    wordpiece = InstructLlama.wordpiece
    count = InstructLlama.count
    shard, first_seed = "160KB", 0


class MiniGpt4(Spec):
    """`.pth` files around a Vicuna of their own."""

    name, tokenizer = "minigpt4", InstructLlama.tokenizer
    qformer = True

    def make(self, seed):
        directory = OUT / "vicuna-v0"
        if self.qformer:
            model = LlamaForCausalLM(llama_config(bos_token_id=1, eos_token_id=2, pad_token_id=0))
            holder = torch.nn.Module()
            holder.language_model = model
            spread(holder, seed)
            model.lm_head.weight.data[2] *= 1.8
            model.lm_head.weight.data[[0, 1, 500, 501, 502]] *= 0.1
            shutil.rmtree(directory, ignore_errors=True)
            model.half().save_pretrained(directory)
            # Not the BOS of InstructBLIP's Vicuna, which convert_llm's tokenizer has.
            names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            (directory / "tokenizer_config.json").write_text(json.dumps(names) + "\n")
        self.model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.model.generation_config = GenerationConfig()
        tower = make_lavis.f32(torch.load(GOLDEN / "lavis" / "eva_vit_g.pth"))
        state = torch.load(GOLDEN / "lavis" / "blip2_pretrained_opt.pth")["model"]
        torch.manual_seed(seed)
        columns = make_lavis.QFORMER["width"] if self.qformer else 4 * make_lavis.EVA["width"]
        weight, bias = torch.randn(N_EMBD, columns) / columns**0.5, torch.randn(N_EMBD) * 0.1
        if self.qformer:
            ln_vision = (state["ln_vision.weight"], state["ln_vision.bias"])
            self.queries = make_lavis.qformer_reference(state, make_lavis.EVA["width"])
        else:
            # Never trained and never saved.
            ln_vision = (torch.ones(make_lavis.EVA["width"]), torch.zeros(make_lavis.EVA["width"]))
            self.queries = lambda vision: vision[:, 1:].reshape(len(vision), -1, columns)
        self.vision = make_lavis.eva_reference(tower, ln_vision, make_lavis.EVA["grid"])
        # Four fifths of every row are the same for all pictures: what tells them apart is made larger.
        _, pixels = make_lavis.pixels(16)
        queries = self.queries(self.vision(pixels))
        gain = 1.0 / (queries - queries.mean(0)).std()
        weight = (weight * gain).half()
        bias = (bias - (queries.mean((0, 1)) @ weight.float().T)).half()
        (OUT / self.name).mkdir(exist_ok=True)
        torch.save(make_lavis.trained({"llama_proj.weight": weight, "llama_proj.bias": bias}), OUT / self.name / "pretrained.pth")
        self.projection = torch.nn.functional.linear, weight.float(), bias.float()

    def pixels(self, names):
        found, pixels = make_lavis.pixels(16)
        return torch.stack([pixels[found.index(name)] for name in names])

    def inputs(self, pixels, text):
        text = text or "Describe this image in detail."
        before, after = make_lavis.LAYOUTS[self.name].format(text).split("<ImageHere>")
        ids = [self.tokenizer.encode(part, add_special_tokens=False).ids for part in (before, after)]
        assert ids[0][0] == 1
        stages = self.stages({"pixels": pixels})
        embed = self.model.get_input_embeddings()
        rows = torch.cat([embed(torch.tensor(ids[0])), stages[2], embed(torch.tensor(ids[1]))])
        return ids, {"pixels": pixels, "rows": rows}

    def stages(self, inputs):
        vision = self.vision(inputs["pixels"][None])
        queries = self.queries(vision)
        linear, weight, bias = self.projection
        return vision[0], queries[0], linear(queries, weight, bias)[0]

    def generate(self, inputs, **options):
        return self.model.generate(inputs_embeds=inputs["rows"][None], eos_token_id=2, pad_token_id=0, **options)


class MiniGpt4Llama2(MiniGpt4):
    name, qformer = "minigpt4_llama2", False


def texts(spec, seed):
    """Texts of all of LENGTHS, in the order of another draw for each picture."""
    chooser = random.Random(seed)
    found = {}
    while len(found) < len(LENGTHS):
        words = chooser.choices(WORDS, k=chooser.randint(0, 150))
        while words:
            n = spec.count(" ".join(words))
            if n in LENGTHS and n not in found:
                found[n] = " ".join(words)
            words.pop()
        found[0] = ""
    return found


class Noise(LogitsProcessor):
    def __init__(self, seed, amplitude):
        self.generator, self.amplitude = torch.Generator().manual_seed(seed), amplitude

    def __call__(self, input_ids, scores):
        return scores + (torch.rand(scores.shape, generator=self.generator) * 2 - 1) * self.amplitude


def answer(spec, inputs, setting, seed=None):
    noise = [] if seed is None else [Noise(seed, spec.noise)]
    beams = setting["num_beams"]
    out = spec.generate(
        inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, logits_processor=LogitsProcessorList(noise),
        num_return_sequences=min(beams, 2), return_dict_in_generate=True, output_logits=True, output_scores=True, **setting,
    )  # fmt: skip
    # Of a decoder behind `input_ids`, the prompt comes first.
    start = out.sequences.shape[1] - len(out.logits) if beams == 1 else None
    if start is None:
        start = 1 if spec.t5 else inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    tokens = out.sequences[0].tolist()[start:]
    cut = [i for i, token in enumerate(tokens) if token in spec.ends]
    tokens = tokens[: cut[0] + 1] if cut else tokens
    if beams > 1:
        return tokens, (out.sequences_scores[0] - out.sequences_scores[1]).item(), None
    logits = torch.cat(out.logits)
    top = logits.topk(2).values
    return tokens, (top[:, 0] - top[:, 1]).min().item(), logits[0]


def answers(spec, inputs):
    """Answers for all settings, the first logits, and the two smallest gaps; None where noise changes one."""
    found, gap, beam_gap, first = [], None, float("inf"), None
    for setting in SETTINGS:
        tokens, lead, logits = answer(spec, inputs, setting)
        if logits is not None:
            gap, first = lead, logits
        else:
            beam_gap = min(beam_gap, lead)
        if gap < spec.min_gap or beam_gap < spec.min_beam_gap or len(tokens) < 2:
            return None
        if any(answer(spec, inputs, setting, seed)[0] != tokens for seed in range(2)):
            return None
        found.append(tokens)
    table = None
    if spec.t5:
        set_gelu(spec.model.language_model, "table")
        table = [[answer(spec, inputs, setting, seed) for seed in (None, 0, 1)] for setting in SETTINGS]
        set_gelu(spec.model.language_model, "erf")
        if any(tokens != expected for expected, tries in zip(found, table) for tokens, *_ in tries):
            return None
        table = table[0][0][2]
    return found, first, table, gap, beam_gap


def try_seed(spec, seed):
    spec.make(seed)
    if spec.t5:
        layers = [module for module in spec.model.modules() if hasattr(module, "wi_0")]
        # The exact one is what BLIP-2 has; this only puts it where the table can go.
        assert (spec.model.language_model.lm_head.weight - spec.model.language_model.shared.weight).abs().max() > 0.1
        assert len(layers) == 4 and all(type(layer.act).__name__ == "GELUActivation" for layer in layers), layers[0].act
        set_gelu(spec.model.language_model, "erf")
    names = [path.stem for path in sorted(PICTURES.glob("*.png"))]
    prompts = texts(spec, seed)
    cases, seen, tried = [], set(), 0
    for i, (name, pixels) in enumerate(zip(names, spec.pixels(names))):
        lengths = LENGTHS[3 * i :] + LENGTHS[: 3 * i]
        n = 0
        for length in lengths:
            ids, inputs = spec.inputs(pixels, prompts[length])
            tried += 1
            print(".", end="", flush=True)
            found = answers(spec, inputs)
            if found is None or tuple(found[0][0]) in seen:
                continue
            seen.add(tuple(found[0][0]))
            cases.append((name, prompts[length], length, ids, inputs, found))
            n += 1
            if n == PER_PICTURE:
                break
        if n < PER_PICTURE:
            print(f"{spec.name}, seed {seed}: {n} pairs of {name}", flush=True)
            return None
    greedy = [found[0][0] for *_, found in cases]
    n_ended = sum(tokens[-1] in spec.ends for tokens in greedy)
    n_differ = sum(found[0][0] != found[0][1] for *_, found in cases)
    lengths = sorted({length for _, _, length, *_ in cases})
    print(f"{spec.name}, seed {seed}: {tried} tried, {n_ended} end, {n_differ} differ with beams, lengths {lengths}", flush=True)
    good = 4 <= n_ended <= 17 and n_differ >= 8 and {0, 200} <= set(lengths)
    return cases if good else None


def largest_activation(spec, all_inputs):
    """Of what a feed-forward layer's way back reads, in encoder and decoder."""
    largest = 0.0

    def watch(module, inputs):
        nonlocal largest
        largest = max(largest, inputs[0].abs().max().item())

    layers = [module for module in spec.model.modules() if hasattr(module, "wi_0")]
    hooks = [layer.wo.register_forward_pre_hook(watch) for layer in layers]
    for inputs in all_inputs:
        answer(spec, inputs, SETTINGS[0])
    for hook in hooks:
        hook.remove()
    return largest


@torch.no_grad()
def make(spec):
    seed, cases = next((seed, cases) for seed in range(spec.first_seed, 1000) if (cases := try_seed(spec, seed)))
    tensors = {}
    stages = [spec.stages(inputs) for *_, inputs, _ in cases]
    per_picture = slice(None) if spec.instruct else slice(None, None, PER_PICTURE)
    tensors["vision"] = stages[0][0][None]
    tensors["queries"] = torch.stack([queries for _, queries, _ in stages])[per_picture]
    tensors["soft_prompt"] = torch.stack([soft for *_, soft in stages])[per_picture]
    tensors["first_logits"] = torch.stack([found[1] for *_, found in cases])
    golden = {
        "made_by": "tests/golden/make_layouts.py",
        "seed": seed,
        "max_new_tokens": MAX_NEW_TOKENS,
        "num_query_tokens": len(stages[0][1]),
        "settings": SETTINGS,
        "noise": spec.noise,
        "smallest_gap": min(found[3] for *_, found in cases),
        "smallest_beam_gap": min(found[4] for *_, found in cases),
        "standard_deviation": tensors["first_logits"].std().item(),
    }
    if spec.t5:
        tensors["first_logits_table"] = torch.stack([found[2] for *_, found in cases])
        off = (tensors["first_logits_table"] - tensors["first_logits"]).abs().max().item()
        golden["largest_difference_of_the_table"] = off
        golden["largest_activation"] = largest_activation(spec, [inputs for *_, inputs, _ in cases])
    print({key: value for key, value in golden.items() if isinstance(value, float)})
    assert golden["smallest_gap"] >= spec.min_gap and golden["smallest_beam_gap"] >= spec.min_beam_gap
    print("soft prompts of two pictures are apart by", (stages[0][2] - stages[4][2]).abs().max().item())
    golden["cases"] = [
        {"picture": name, "text": text, "n_tokens": length, "prompt_ids": ids, "answers": found[0]}
        for name, text, length, ids, _, found in cases
    ]
    save_file({key: value.contiguous() for key, value in tensors.items()}, OUT / f"{spec.name}.safetensors")
    text = json.dumps(golden, ensure_ascii=False)
    for mark in ('{"num_beams"', '{"picture"'):
        text = text.replace(mark, "\n" + mark)
    (OUT / f"{spec.name}.json").write_text(text + "\n")


def main():
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    OUT.mkdir(exist_ok=True)
    for spec in (BlipOpt, BlipT5, InstructLlama, InstructT5, MiniGpt4, MiniGpt4Llama2):
        if not sys.argv[1:] or spec.name in sys.argv[1:]:
            make(spec())


if __name__ == "__main__":
    main()
