"""Makes tests/golden/blip: small random BLIPs of each class, and what transformers makes of pictures and texts with them.

    python3 tests/golden/make_blip.py [NAME ...]

needs torch, transformers and pillow (made with torch 2.15, transformers 5.23.0); after make_clip.py, whose pictures it
takes, and make_instructblip.py, whose vocabulary it takes. Written are

    NAME/                      what the class and BlipProcessor save, the weights in f16, of
                               captioning (BlipForConditionalGeneration), retrieval (BlipForImageTextRetrieval) and
                               answering (BlipForQuestionAnswering)
    captioning.json            20 pairs of picture and prefix, and captions for each of SETTINGS
    retrieval.json             20 pairs of picture and text: cosine and matching logits, the latter also with [ENC]
    answering.json             20 pairs of picture and question, answers for each of SETTINGS, also with [ENC]; and the
                               ranks and scores of CANDIDATES for three of them
    published.json             names and shapes of Salesforce's models, of layer 0 for all layers

The seed is searched: noise of NOISE laid over the scores of every step changes no caption and no answer, and no two
greedy captions are the same.
"""

import json
import random
import sys
import warnings
from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipTextConfig,
    BlipVisionConfig,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.utils import logging

from make_clip import PICTURES, layer_zero, picture
from make_instructblip import WORDS

GOLDEN = Path(__file__).resolve().parent
OUT = GOLDEN / "blip"
VOCABULARY = GOLDEN / "instructblip" / "checkpoint" / "qformer_tokenizer" / "tokenizer.json"
REPOSITORY = GOLDEN.parent.parent
IMAGE_SIZE = 48
SEP, DEC = 3, 426
ENC = DEC + 1
NOISE = 2e-4
# Added to the bias of [SEP], so that some texts end by themselves.
END = {"BlipForConditionalGeneration": 10.0, "BlipForQuestionAnswering": 8.0}
# What transformers does by itself, what LAVIS does, and both with penalties.
SETTINGS = [
    {"num_beams": 1},
    {"num_beams": 3, "max_length": 30, "min_length": 10},
    {"num_beams": 1, "max_length": 16, "min_length": 8, "repetition_penalty": 1.4},
    {"num_beams": 5, "max_length": 14, "length_penalty": -1.0, "repetition_penalty": 1.2},
]
N_PAIRS = 20
PREFIXES = ["", "a picture of", "a short description", "What unusual"]


def texts(n, most, seed):
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=1 + i % most)) for i in range(n)]


QUESTIONS = [f"{text}?" for text in texts(12, 9, 1)]
CAPTIONS = texts(N_PAIRS, 14, 2)
CANDIDATES = list(dict.fromkeys(texts(190, 3, 3)))


def config(**sizes):
    """Sizes apart from one another, as far as the class allows: a decoder of answers reads what its encoder says."""
    sizes = {"vision": 48, "text": 32, **sizes}
    return BlipConfig(
        vision_config=BlipVisionConfig(
            hidden_size=sizes["vision"], intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
            image_size=IMAGE_SIZE, patch_size=8,
        ).to_dict(),
        text_config=BlipTextConfig(
            vocab_size=ENC + 1, hidden_size=sizes["text"], intermediate_size=72, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, bos_token_id=DEC, sep_token_id=SEP, eos_token_id=SEP,
            pad_token_id=0, label_smoothing=sizes.get("label_smoothing", 0.0),
        ).to_dict(),
        image_text_hidden_size=20,
    )  # fmt: skip


def spread(model, seed):
    """Fresh weights barely move the signal; these do, so that a wrong layer shows."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name.lower():
            parameter.data = torch.randn_like(parameter) * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            parameter.data = torch.randn_like(parameter) * 0.2
        elif "embedding" in name and "patch" not in name:
            parameter.data = torch.randn_like(parameter) * (0.5 if "vision" in name else 1.0)
        else:
            gain = 1.3
            if "crossattention" in name:
                gain = 2.5
            elif "query" in name or "key" in name or "qkv" in name:
                gain = 1.8
            parameter.data = torch.randn_like(parameter) * gain / parameter[0].numel() ** 0.5
    if hasattr(model, "text_decoder"):
        head = model.text_decoder.cls.predictions
        assert head.decoder.weight is model.text_decoder.bert.embeddings.word_embeddings.weight
        head.bias.data[SEP] += END[type(model).__name__]
        head.decoder.bias = head.bias
    return model.half().float().eval()


class Noise(LogitsProcessor):
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids, scores):
        return scores + (torch.rand(scores.shape, generator=self.generator) * 2 - 1) * NOISE


def generated(model, inputs, setting, n_prompt, seed=None):
    noise = LogitsProcessorList([] if seed is None else [Noise(seed)])
    ids = model.generate(**inputs, do_sample=False, logits_processor=noise, **setting)[0].tolist()[n_prompt:]
    return ids[: ids.index(SEP) + 1] if SEP in ids else ids


def stable(model, inputs, n_prompt):
    """Texts for all settings; none where noise changes one."""
    found = []
    for setting in SETTINGS:
        ids = generated(model, inputs, setting, n_prompt)
        if len(ids) < 2 or any(generated(model, inputs, setting, n_prompt, seed) != ids for seed in range(1)):
            return None
        found.append(ids)
    return found


def inputs_of(tokenizer, pixels, text):
    inputs = {"pixel_values": pixels[None]}
    if text:
        inputs |= tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    return inputs


def search(make, tokenizer, pixels, prompts, n_prompt, others=None, first_seed=0, per_picture=2):
    """A model, and N_PAIRS pairs of picture and text with its texts. Seeds before `first_seed` were tried."""
    for seed in range(first_seed, 200):
        model = make(seed)
        pairs, seen = [], set()
        first = [generated(model, inputs_of(tokenizer, pixel, prompts[-1]), SETTINGS[0], n_prompt(inputs_of(tokenizer, pixel, prompts[-1])))
                 for pixel in pixels]  # fmt: skip
        ended = sum(ids[-1] == SEP for ids in first)
        different = len({tuple(ids) for ids in first})
        print(f"seed {seed}: of {len(first)} pictures {ended} end, {different} differ, lengths {sorted(map(len, first))}", flush=True)
        if not 2 <= ended <= 16 or different < 14:
            continue
        for i, pixel in enumerate(pixels):
            of_picture = 0
            for j in range(len(prompts)):
                text = prompts[(i + j) % len(prompts)]
                inputs = inputs_of(tokenizer, pixel, text)
                found = stable(model, inputs, n_prompt(inputs))
                if found is None or tuple(found[0]) in seen:
                    continue
                extra = others(model, inputs) if others else {}
                if extra is None:
                    continue
                seen.add(tuple(found[0]))
                pairs.append({"picture": i, "text": text, "ids": found, **extra})
                of_picture += 1
                if of_picture == per_picture or len(pairs) == N_PAIRS:
                    break
            if len(pairs) == N_PAIRS:
                ended = sum(pair["ids"][0][-1] == SEP for pair in pairs)
                beams = sum(pair["ids"][0] != pair["ids"][1] for pair in pairs)
                lengths = sorted(len(pair["ids"][0]) for pair in pairs)
                in_all = sum(ids[-1] == SEP for pair in pairs for ids in pair["ids"])
                print(f"seed {seed}: {ended} end, {in_all} in all settings, {beams} differ with beams, lengths {lengths}", flush=True)
                if 1 <= ended <= 17 and beams >= 8:
                    return model, pairs
                break
        else:
            print(f"seed {seed}: {len(pairs)} pairs", flush=True)
    raise SystemExit("no seed")


def save(name, model, tokenizer, processor):
    model.half().save_pretrained(OUT / name)
    (OUT / name / "generation_config.json").unlink(missing_ok=True)
    model.float()
    tokenizer.save_pretrained(OUT / name)
    processor.save_pretrained(OUT / name)


def write(name, **golden):
    text = json.dumps({"made_by": "tests/golden/make_blip.py", **golden}, ensure_ascii=False)
    (OUT / f"{name}.json").write_text(text.replace('{"picture"', '\n{"picture"') + "\n")


def captioning(tokenizer, processor, pixels):
    make = lambda seed: spread(BlipForConditionalGeneration(config()), seed)  # noqa: E731
    n_prompt = lambda inputs: inputs["input_ids"].shape[1] - 1 if "input_ids" in inputs else 1  # noqa: E731
    model, pairs = search(make, tokenizer, pixels, PREFIXES, n_prompt)
    for pair in pairs:
        inputs = inputs_of(tokenizer, pixels[pair["picture"]], pair["text"])
        ids = model.generate(**inputs, do_sample=False, **SETTINGS[0])[0]
        pair["decoded"] = tokenizer.decode(ids, skip_special_tokens=True)
    save("captioning", model, tokenizer, processor)
    write("captioning", settings=SETTINGS, pairs=pairs)


def retrieval(tokenizer, processor, pixels):
    model = spread(BlipForImageTextRetrieval(config()), 7)
    pairs = []
    for i, (pixel, text) in enumerate(zip(pixels, CAPTIONS)):
        inputs = inputs_of(tokenizer, pixel, text)
        enc = dict(inputs, input_ids=inputs["input_ids"].clone())
        enc["input_ids"][:, 0] = ENC
        pairs.append({
            "picture": i, "text": text, "cosine": model(**inputs, use_itm_head=False).itm_score.item(),
            "logits": model(**inputs).itm_score[0].tolist(), "logits_enc": model(**enc).itm_score[0].tolist(),
        })  # fmt: skip
    print("retrieval: cosines", [round(pair["cosine"], 3) for pair in pairs])
    print("probabilities", [round(torch.tensor(pair["logits"]).softmax(0)[1].item(), 3) for pair in pairs])
    print("with [ENC]", [round(torch.tensor(pair["logits_enc"]).softmax(0)[1].item(), 3) for pair in pairs])
    save("retrieval", model, tokenizer, processor)
    write("retrieval", pairs=pairs)


def question_states(model, inputs):
    """As `generate` of BlipForQuestionAnswering comes to them."""
    vision = model.vision_model(inputs["pixel_values"])[0]
    return model.text_encoder(input_ids=inputs["input_ids"], encoder_hidden_states=vision)[0]


def ranks(model, tokenizer, inputs, limit=128):
    """LAVIS's `rank_answers` with the reference's decoder: the candidates in their order, and their scores."""
    states = question_states(model, inputs)
    answers = [tokenizer(text, return_tensors="pt", return_token_type_ids=False)["input_ids"] for text in CANDIDATES]
    first = model.text_decoder(torch.tensor([[DEC]]), encoder_hidden_states=states).logits[0, 0]
    order = sorted(range(len(answers)), key=lambda i: -first[answers[i][0, 1]].item())[:limit]
    scores = {}
    for i in order:
        ids = answers[i].clone()
        ids[:, 0] = DEC
        # `forward` takes the mean over the tokens.
        loss = model.text_decoder(ids, encoder_hidden_states=states, labels=ids, reduction="mean").loss
        scores[i] = -loss.item() * (ids.shape[1] - 1)
    return sorted(order, key=lambda i: -scores[i]), scores


def answering(tokenizer, processor, pixels):
    # Of one width, or the decoder could not read the question.
    make = lambda seed: spread(BlipForQuestionAnswering(config(vision=36, text=36, label_smoothing=0.1)), seed)  # noqa: E731

    def with_enc(model, inputs):
        enc = dict(inputs, input_ids=inputs["input_ids"].clone())
        enc["input_ids"][:, 0] = ENC
        found = stable(model, enc, 1)
        return None if found is None else {"ids_enc": found}

    model, pairs = search(make, tokenizer, pixels, QUESTIONS, lambda inputs: 1, with_enc, first_seed=5, per_picture=4)
    n_differ = sum(pair["ids"] != pair["ids_enc"] for pair in pairs)
    print(f"answering: {n_differ} differ with [ENC]")
    ranked = []
    for pair in pairs[:3]:
        order, scores = ranks(model, tokenizer, inputs_of(tokenizer, pixels[pair["picture"]], pair["text"]))
        gaps = [scores[a] - scores[b] for a, b in zip(order, order[1:])]
        print("ranked", len(order), "best", CANDIDATES[order[0]], scores[order[0]], "smallest gap", min(gaps))
        ranked.append({"picture": pair["picture"], "text": pair["text"], "order": order,
                       "scores": [scores[i] for i in order]})  # fmt: skip
    save("answering", model, tokenizer, processor)
    write("answering", settings=SETTINGS, candidates=CANDIDATES, pairs=pairs, ranked=ranked)


LARGE = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
PUBLISHED = {
    "Salesforce/blip-image-captioning-base": (BlipForConditionalGeneration, {}),
    "Salesforce/blip-image-captioning-large": (BlipForConditionalGeneration, LARGE),
    "Salesforce/blip-itm-base-coco": (BlipForImageTextRetrieval, {}),
    "Salesforce/blip-itm-large-coco": (BlipForImageTextRetrieval, LARGE),
    "Salesforce/blip-vqa-base": (BlipForQuestionAnswering, {}),
}


def published():
    found = {}
    for name, (kind, vision) in PUBLISHED.items():
        # Twelve heads: the class's default is eight, which no checkpoint was trained with.
        full = BlipConfig(
            vision_config=BlipVisionConfig(**vision).to_dict(), text_config=BlipTextConfig(num_attention_heads=12).to_dict()
        )
        with torch.device("meta"):
            model = kind(full)
        stacks = {"vision_model.encoder.layers": full.vision_config.num_hidden_layers}
        for text in ("text_encoder.encoder.layer", "text_decoder.bert.encoder.layer"):
            if hasattr(model, text.split(".")[0]):
                stacks[text] = 12
        found[name] = {
            "config": {"model_type": "blip", "vision_config": vision, "text_config": {"num_attention_heads": 12}},
            "tensors": layer_zero(model.state_dict(), stacks),
        }
    return found


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    OUT.mkdir(exist_ok=True)
    vocabulary = json.loads(VOCABULARY.read_text())["model"]["vocab"]
    # Like the published ones, it knows nothing of [DEC] and [ENC].
    tokenizer = BertTokenizer(vocab={token: id for token, id in vocabulary.items() if id < DEC}, model_max_length=60)
    assert len(tokenizer) == DEC and tokenizer.sep_token_id == SEP, len(tokenizer)
    processor = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    pixels = processor([picture(path) for path in PICTURES], return_tensors="pt")["pixel_values"]
    for make in (captioning, retrieval, answering):
        if not sys.argv[1:] or make.__name__ in sys.argv[1:]:
            make(tokenizer, processor, pixels)
    (OUT / "published.json").write_text(json.dumps(published()).replace('"Salesforce/', '\n"Salesforce/') + "\n")


if __name__ == "__main__":
    main()
