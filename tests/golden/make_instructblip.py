"""Makes tests/golden/instructblip: InstructBLIP with tiny random weights, and what transformers makes of it.

    python3 tests/golden/make_instructblip.py

needs torch, transformers, tokenizers, gguf and pillow (made with torch 2.15, transformers 5.23.0, tokenizers 0.23.3).
Written are

    wordpiece.json              1,000 strings with the ids of checkpoint/qformer_tokenizer
    NAME.safetensors, NAME/     vision, queries and soft prompt of models whose weights are made from their names, as in
                                make_vision.py; `texts` are the instructions' ids, padded, `lengths` their lengths
    checkpoint/                 what InstructBlipForConditionalGeneration and InstructBlipProcessor save, with a Llama
    llm.gguf                    its language_model.* and its tokenizer, BOS being <s> as in a Vicuna of one's own
    golden.json                 20 cases (picture, instruction, greedy answer) and some of videos of 4 frames
    reference.safetensors       first_logits [cases, 320], soft_prompt.N of each case

Pictures are those of make_llm.py. As there, the seed is searched: every choice of a token has a margin well above
rounding, and no two answers are the same.
"""

import json
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from make_llm import IMAGE_SIZE, make_tokenizer, write_gguf
from make_vision import checksum, values
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import normalizers, processors
from transformers import (
    BertTokenizer,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVideoForConditionalGeneration,
    InstructBlipVisionConfig,
    LlamaConfig,
    OPTConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

OUT = Path(__file__).resolve().parent / "instructblip"
PICTURES = OUT.parent / "llm" / "pictures"
WORDPIECES = 427
MAX_LENGTH = 202  # 200 tokens beside [CLS] and [SEP]
N_QUERIES = 6
UNK, BOS, EOS, IMAGE, VIDEO = range(5)
MAX_NEW_TOKENS = 16
MIN_GAP = 2e-3

WORDS = (
    "a the of is it what which colour shape picture image drawing red green blue yellow circle square stripe box face "
    "left right large small one two three four many how where who why when describe write short detailed description "
    "caption unusual about this that there are in on under beside person dog cat bird house tree street car taxi man "
    "woman child holding ironing clothes back busy city naïve café größer übermäßig running jumped quickly answer "
    "question yes no maybe not only between everything nothing something 1 2 3 10 42 100 1000 3.14"
).split()


OTHER_SCRIPTS = "東京 の 写真 猫 犬 привет мир γειά σου שלום مرحبا नमस्ते 안녕 0123456789 .,:;!?'-"


def make_wordpiece():
    """BERT's tokenizer with a small vocabulary and `[DEC]`, cut on the left, as in Salesforce/instructblip-*."""
    normalize = normalizers.BertNormalizer().normalize_str
    words = normalize(" ".join(WORDS)).split()
    letters = sorted(set("".join(words) + normalize(OTHER_SCRIPTS)) - {" "})
    # A third of the words is left to be spelled in pieces.
    whole = sorted({word for i, word in enumerate(words) if i % 3 and len(word) > 1})
    pieces = sorted({word[i : i + 2] for word in words for i in range(1, len(word) - 1)})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *whole]
    vocabulary += [f"##{piece}" for piece in [*letters, *pieces, *whole]]
    vocabulary = list(dict.fromkeys(vocabulary))
    assert len(vocabulary) == WORDPIECES - 1, len(vocabulary)
    path = Path(tempfile.mkdtemp()) / "vocab.txt"
    path.write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizer(vocab=str(path), truncation_side="left", model_max_length=MAX_LENGTH)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def strings():
    """1,000 strings of all kinds."""
    chooser = random.Random(1)
    out = ["", " ", "\n", "\t \r\n", "a", "A", "?", "...", "\x00", "a\x00b", "\ufffd", "\u200b", "\u00a0", "\ufeffa", "\u2028",
           "[CLS]", "[SEP]", "[MASK] [PAD] [UNK]", "[DEC]", "[dec] [cls]", "a[SEP]b", "[CLS", "CLS]", "<image>", "</s>", "<s>",
           "ß ẞ SS", "İstanbul ı I i", "ǅ ǆ Ǆ", "Å Å Å", "é e\u0301 É", "ﬁ ﬀ", "①②", "½", "𝒜𝔅", "Ａ１", "ー〜", "ｶﾞ",
           "😀", "👩‍👩‍👧‍👦 family", "🇩🇪", "👍🏽", "a😀b", "東京タワー", "猫 and 犬", "𠀀", "〇", "안녕하세요", "नमस्ते", "שָׁלוֹם", "مَرْحَبًا", "Привет, мир!",
           "##a ##b", "#", "don't they've", "U.S.A.", "3.14", "1,000", "$5", "50%", "a_b", "a-b–c—d", "“quoted”", "‘x’", "e=mc²",
           "x" * 100, "x" * 101, "y " * 300, "word" * 60, "a" + " " * 500 + "b", "\n\n\n\n", " leading", "trailing ", "~`^|\\", "\x7f\x80\x9f",
           "\u0301", "a\u0301\u0301", "\u202eabc", "\ue000", "\U0010ffff", "\u3000full\u3000width"]  # fmt: skip
    alphabets = ["abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJÄÖÜÉÑ", "0123456789.,:;!?'\"()[]{}#@&*-+/=", "àéîõüçñøåæœßðþ",
                 "абвгдежз", "東京写真猫犬人大小", "😀😃🎈🐶🏠", " \t\n  ", "\u0300\u0301\u0308\u200d\u00ad", "אבגד", "กขคง"]  # fmt: skip
    while len(out) < 1000:
        kind = chooser.randrange(4)
        if kind == 0:
            text = " ".join(chooser.choices(WORDS, k=chooser.randint(1, 40)))
        elif kind == 1:
            text = "".join(chooser.choice(chooser.choice(alphabets)) for _ in range(chooser.randint(1, 30)))
        elif kind == 2:
            words = (chooser.choice([str.upper, str.title, str.lower])(word) for word in chooser.choices(WORDS, k=6))
            text = chooser.choice(["  ", "\n", "", ", ", "-", "\u00a0"]).join(words)
        else:
            text = "".join(map(chr, chooser.choices([*range(0x20, 0xD800), *range(0xE000, 0x11000), *range(0x1F300, 0x1F700)], k=chooser.randint(1, 12))))  # fmt: skip
        out.append(text)
    return out


# Sizes chosen apart from one another so that no two can be taken for each other.
MODELS = {
    "shallow": dict(
        vision=dict(hidden_size=48, num_attention_heads=4, intermediate_size=96, num_hidden_layers=2, image_size=40,
                    patch_size=8, layer_norm_eps=0.05),
        qformer=dict(hidden_size=32, num_attention_heads=2, intermediate_size=72, num_hidden_layers=3,
                     cross_attention_frequency=1, layer_norm_eps=0.02, vocab_size=WORDPIECES, max_position_embeddings=MAX_LENGTH),
        queries=5, n_embd=24, instructions=[7, 0, 64]),
    "deep": dict(
        vision=dict(hidden_size=64, num_attention_heads=2, intermediate_size=160, num_hidden_layers=4, image_size=56,
                    patch_size=14),
        qformer=dict(hidden_size=40, num_attention_heads=8, intermediate_size=128, num_hidden_layers=7,
                     cross_attention_frequency=3, vocab_size=WORDPIECES + 9, max_position_embeddings=512),
        queries=32, n_embd=40, instructions=[0, 200, 12, 1, 260]),
    "one_query": dict(
        vision=dict(hidden_size=80, num_attention_heads=5, intermediate_size=200, num_hidden_layers=3, image_size=32,
                    patch_size=4, qkv_bias=False),
        qformer=dict(hidden_size=48, num_attention_heads=6, intermediate_size=100, num_hidden_layers=5,
                     cross_attention_frequency=2, vocab_size=WORDPIECES, max_position_embeddings=256),
        queries=1, n_embd=33, instructions=[33, 120], rows_vision=[0, 1, 31, 64]),
    # Three of instructblip-vicuna-7b's layers at full width.
    "full_width": dict(
        vision=dict(num_hidden_layers=1),
        qformer=dict(num_hidden_layers=3, vocab_size=WORDPIECES),
        queries=32, n_embd=64, instructions=[20, 199], rows_vision=[0, 100, 256], rows_queries=[0, 1, 15, 31]),
}  # fmt: skip


def instruction(n_tokens, tokenizer, seed):
    """Words that come to `n_tokens` tokens before they are cut."""
    chooser = random.Random(seed)
    text, ids = "", []
    while len(ids) < n_tokens:
        before, text = text, f"{text} {chooser.choice(WORDS)}".strip()
        ids = tokenizer.encode(text, add_special_tokens=False, truncation=False)
        if len(ids) > n_tokens:
            text, ids = before, []
            ids = tokenizer.encode(text, add_special_tokens=False, truncation=False)
            text, ids = f"{text} a".strip(), [*ids, 0]
    assert len(tokenizer.encode(text, add_special_tokens=False, truncation=False)) == n_tokens, text
    return text


@torch.no_grad()
def make_models(tokenizer):
    for name, spec in MODELS.items():
        config = InstructBlipConfig(
            vision_config=InstructBlipVisionConfig(**spec["vision"]).to_dict(),
            qformer_config=InstructBlipQFormerConfig(**spec["qformer"]).to_dict(),
            text_config=OPTConfig(hidden_size=spec["n_embd"], word_embed_proj_dim=spec["n_embd"], num_hidden_layers=1,
                                  num_attention_heads=1, ffn_dim=8, vocab_size=16, max_position_embeddings=8).to_dict(),
            num_query_tokens=spec["queries"],
            image_token_index=15,
        )  # fmt: skip
        model = InstructBlipForConditionalGeneration(config).eval()
        weights = {}
        for key, parameter in model.named_parameters():
            if not key.startswith("language_model."):
                weights[key] = values(key, tuple(parameter.shape))
                parameter.data = torch.from_numpy(weights[key])
        texts = [instruction(n, tokenizer, 100 * i + n) for i, n in enumerate(spec["instructions"])]
        encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        side = config.vision_config.image_size
        pixels = torch.from_numpy(values("pixels", (len(texts), 3, side, side)))
        features = model.get_image_features(pixels, encoded["input_ids"], encoded["attention_mask"])
        queries = features.qformer_outputs.last_hidden_state[:, : spec["queries"]].numpy()
        vision, soft_prompt = features.last_hidden_state.numpy(), features.pooler_output.numpy()
        rows_vision = spec.get("rows_vision", list(range(vision.shape[1])))
        rows_queries = spec.get("rows_queries", list(range(spec["queries"])))
        print(name, vision.shape, queries.shape, "lengths", encoded["attention_mask"].sum(1).tolist(),
              "standard deviations", vision.std().round(3), queries.std().round(3), soft_prompt.std().round(3))  # fmt: skip
        save_file(
            {
                "vision": np.ascontiguousarray(vision[:, rows_vision]),
                "queries": np.ascontiguousarray(queries[:, rows_queries]),
                "soft_prompt": np.ascontiguousarray(soft_prompt[:, rows_queries]),
                "rows_vision": np.array(rows_vision, dtype=np.uint32),
                "rows_queries": np.array(rows_queries, dtype=np.uint32),
                "texts": encoded["input_ids"].numpy().astype(np.uint32),
                "lengths": encoded["attention_mask"].sum(1).numpy().astype(np.uint32),
                "checksum": checksum(weights),
            },
            OUT / f"{name}.safetensors",
        )
        config.save_pretrained(OUT / name)
        (OUT / name / "instructions.json").write_text(json.dumps(texts, indent=1) + "\n")


def make_model(seed, vocab_size):
    torch.manual_seed(seed)
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=IMAGE_SIZE,
            patch_size=14,
        ).to_dict(),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=WORDPIECES, max_position_embeddings=MAX_LENGTH, hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, encoder_hidden_size=32,
        ).to_dict(),
        # The ids of Salesforce/instructblip-vicuna-7b's config, which are not those of its tokenizer.
        text_config=LlamaConfig(
            vocab_size=vocab_size, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=2048, rms_norm_eps=1e-6, bos_token_id=0, eos_token_id=1,
            pad_token_id=-1, tie_word_embeddings=False,
        ).to_dict(),
        num_query_tokens=N_QUERIES,
        image_token_index=IMAGE,
    )  # fmt: skip
    model = InstructBlipForConditionalGeneration(config).eval()
    # Fresh weights barely move the signal; these do, so that a wrong layer shows.
    for name, parameter in model.named_parameters():
        if "norm" in name.lower():
            spread = torch.randn_like(parameter) * 0.1
            parameter.data = spread + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            parameter.data = torch.randn_like(parameter) * 0.1
        elif "embed" in name or "query_tokens" in name:
            parameter.data = torch.randn_like(parameter) * (0.5 if "vision" in name else 1.0)
        else:
            gain = 1.6 if "language_model" in name else 1.3
            parameter.data = torch.randn_like(parameter) * gain / parameter[0].numel() ** 0.5
    model.vision_model.embeddings.patch_embedding.weight.data *= 1.5
    head = model.language_model.lm_head.weight
    head.data *= 2.0
    head.data[EOS] *= 1.3  # some answers shall end by themselves
    head.data[[UNK, BOS, IMAGE, VIDEO]] *= 0.0
    return model


@torch.no_grad()
def answer(model, inputs):
    out = model.generate(
        **inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=EOS, pad_token_id=EOS,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    tokens = out.sequences[0].tolist()[-len(out.logits) :]
    logits = torch.cat(out.logits)
    top = logits.topk(2).values
    assert logits.argmax(-1).tolist() == tokens
    return tokens, logits[0], (top[:, 0] - top[:, 1]).min().item()


def try_seed(seed, tokenizer, inputs, per_picture):
    """`per_picture` cases of each picture, then the videos, all with answers of their own."""
    model = make_model(seed, len(tokenizer))
    found, answers, counts = [], set(), {}
    for case, values in inputs:
        if counts.get(case["pictures"][0], 0) == per_picture and len(case["pictures"]) == 1:
            continue
        tokens, logits, gap = answer(as_video(model) if len(case["pictures"]) > 1 else model, values)
        if gap < MIN_GAP or tuple(tokens) in answers or len(tokens) < 3:
            continue
        answers.add(tuple(tokens))
        counts[case["pictures"][0]] = counts.get(case["pictures"][0], 0) + 1
        found.append((case, values, tokens, logits, gap))
    n_videos = sum(len(case["pictures"]) > 1 for case, *_ in found)
    n_ended = sum(tokens[-1] == EOS for _, _, tokens, *_ in found)
    lengths = {case["n_tokens"] for case, *_ in found}
    reason = f"{len(found) - n_videos} pictures, {n_videos} videos, {n_ended} end, lengths {sorted(lengths)}"
    good = len(found) - n_videos == 20 and n_videos >= 3 and 2 <= n_ended <= 10 and {0, 200, 260} <= lengths
    return (model, found) if good else None, reason


def as_video(model):
    config = model.config.to_dict()
    config.update(model_type="instructblipvideo", video_token_index=VIDEO)
    config.pop("image_token_index", None)
    for part in ("vision_config", "qformer_config"):
        config[part]["model_type"] = config[part]["model_type"].replace("instructblip", "instructblipvideo")
    video = InstructBlipVideoForConditionalGeneration(
        InstructBlipVideoForConditionalGeneration.config_class.from_dict(config)
    ).eval()
    video.load_state_dict(model.state_dict())
    return video


def main():
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    wordpiece = make_wordpiece()
    texts = strings()
    encoded = [wordpiece(text, truncation=True)["input_ids"] for text in texts]
    lines = ",\n".join(json.dumps([text, ids], separators=(",", ":")) for text, ids in zip(texts, encoded, strict=True))
    (OUT / "wordpiece.json").write_text(f"[\n{lines}\n]\n")
    make_models(wordpiece)

    special = ["<unk>", "<s>", "</s>", "<image>", "<video>"]
    tokenizer = make_tokenizer(special)
    # The reference puts `</s>` before the text of its Vicuna models: that is their tokenizer's BOS.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", EOS)]
    )
    tokenizer.bos_token = "</s>"
    image_processor = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = InstructBlipProcessor(image_processor, tokenizer, wordpiece, num_query_tokens=N_QUERIES)

    pictures = {path.stem: Image.open(path) for path in sorted(PICTURES.glob("*.png"))}
    fixed = ["", "What colour is it?", "Write a short description for the image.", "Größer als 3 Äpfel? 😀 東京",
             "It's 2 o'clock.\nThe shape\n\nis  a", "QUESTION: how many shapes are there? Short Answer:"]  # fmt: skip
    long = [instruction(n, wordpiece, n) for n in (30, 77, 128, 200, 260)]
    inputs = []
    for i, (name, picture) in enumerate(pictures.items()):
        # Lengths of all kinds for every picture, in another order.
        order = fixed[i % 6 :] + fixed[: i % 6]
        for text in [order[0], long[i % 5], order[1], long[(i + 3) % 5], order[2], order[3], *long]:
            values = processor(images=picture, text=text, truncation=True, return_tensors="pt")
            inputs.append(({"pictures": [name], "instruction": text}, values))
    names = list(pictures)
    for i, text in enumerate([fixed[1], long[1], fixed[4], long[3], fixed[2], long[0]]):
        frames = [names[(i + j * (i + 1)) % 5] for j in range(4)]
        values = processor(images=pictures[frames[0]], text=text, truncation=True, return_tensors="pt")
        pixels = image_processor([pictures[name] for name in frames], return_tensors="pt")["pixel_values"]
        values["pixel_values"] = pixels[None]
        ids = [VIDEO] * (4 * N_QUERIES) + values["input_ids"][0, N_QUERIES:].tolist()
        values["input_ids"] = torch.tensor([ids])
        values["attention_mask"] = torch.ones_like(values["input_ids"])
        inputs.append(({"pictures": frames, "instruction": text}, values))
    for case, values in inputs:
        length = len(wordpiece.encode(case["instruction"], add_special_tokens=False, truncation=False))
        case["n_tokens"] = length
        case["qformer_ids"] = values["qformer_input_ids"][0].tolist()
        start = [VIDEO] * (4 * N_QUERIES) if len(case["pictures"]) > 1 else [IMAGE] * N_QUERIES
        ids = values["input_ids"][0].tolist()
        assert ids[: len(start) + 1] == [*start, EOS], ids
        case["prompt_ids"] = ids[len(start) :]

    for seed in range(1000):
        found, reason = try_seed(seed, tokenizer, inputs, per_picture=4)
        print(f"seed {seed}: {reason}", flush=True)
        if found:
            break
    model, cases = found
    cases.sort(key=lambda case: len(case[0]["pictures"]))

    checkpoint = OUT / "checkpoint"
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    write_gguf(OUT / "llm.gguf", model, tokenizer, special, bos=BOS, eos=EOS)
    reference = {"first_logits": np.stack([logits.numpy() for _, _, _, logits, _ in cases])}
    with torch.no_grad():
        for i, (case, values, *_) in enumerate(cases):
            reader = as_video(model) if len(case["pictures"]) > 1 else model
            features = reader.get_video_features if len(case["pictures"]) > 1 else reader.get_image_features
            features = features(values["pixel_values"], values["qformer_input_ids"], values["qformer_attention_mask"])
            reference[f"soft_prompt.{i}"] = np.ascontiguousarray(features.pooler_output[0].numpy())
    save_file(reference, OUT / "reference.safetensors")
    golden = {
        "made_by": "tests/golden/make_instructblip.py",
        "seed": seed,
        "max_new_tokens": MAX_NEW_TOKENS,
        "num_query_tokens": N_QUERIES,
        "cases": [
            case | {"answer_ids": tokens, "smallest_gap": round(gap, 5)} for case, _, tokens, _, gap in cases
        ],
    }
    (OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")
    for case in golden["cases"]:
        print(case["pictures"], case["n_tokens"], len(case["answer_ids"]), case["smallest_gap"])


if __name__ == "__main__":
    main()
