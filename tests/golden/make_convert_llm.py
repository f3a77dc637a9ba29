"""Makes tests/golden/convert_llm: tiny random language models and trained tokenizers as
transformers saves them, with what transformers computes from them.

    python3 tests/golden/make_convert_llm.py

needs torch, transformers, tokenizers, sentencepiece and safetensors (made with torch 2.15,
transformers 5.23.0, tokenizers 0.23.3, sentencepiece 0.2.3). Written are

    strings.json           1000 texts
    tokenizers/NAME/       a tokenizer; ids.json has its ids of the texts, special tokens
                           read as text ("plain"), and where that differs, as tokens
                           ("special", by index)
    models/NAME/           a checkpoint; golden.json and reference.safetensors have greedy
                           ids and first-step logits of a few prompts

Weights are larger than a fresh model's, so that logits and answers vary.
"""

import json
import random
import re
import shutil
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

OUT = Path(__file__).parent / "convert_llm"
N_STRINGS = 1000
WORDS = (
    "the a picture of dog cat woman man beach street car bus red green blue is are sitting on with and "
    "what which where how many colour city answer question short description write please It's don't we'll "
    "they've I'm you're he'd naïve café größer Straße señor Москва город Ελλάδα שלום مرحبا नमस्ते 你好 世界 東京 "
    "こんにちは カタカナ 한국어 สวัสดี 1 12 2024 3.14 1,000 50% $5 #tag @user e-mail foo_bar camelCase HTTP://x.y"
).split()
PIECES = [
    "😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "❤️", "🇩🇪", "👍🏽", "é", "e\u0301", "ﬁ", "ﬀ", "①", "²", "½", "Ⅳ", "ｶﾞ", "Ａ", "…", "—", "“x”",
    " ", "  ", "   ", "          ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u200b", "\u2003",
    "<s>", "</s>", "<unk>", "<pad>", "<image>", "[PAD]", "<0x0A>", "<extra_id_0>", "<|endoftext|>", "▁", "▁▁",
    "###", "[INST]", "<s", "/s>", "<<SYS>>", "<Img>", "</Img>", "[PAD505]",
    ".", ",", "?", "!", "...", "?!", "'", "'s", "'S", '"', "()", "[]", "{}", "&", "\\", "/", "//", "a/b", "==", "->", "`",
    "0", "00", "007", "9999999999", "٣", "५", "ß", "ẞ", "İ", "ı", "ǅ", "Ω", "K", "\u0300", "ก็", "क्ष", "ไม้", "ﷺ", "𝔘𝔫𝔦", "𒀀", "🜁",
]


def strings():
    rng = random.Random(3)
    texts = ["", *WORDS, *PIECES, *(f"a{piece}b" for piece in PIECES), *(f"{piece} x {piece}" for piece in PIECES)]
    texts.remove("")
    while len(texts) < N_STRINGS:
        parts = []
        for _ in range(rng.randint(1, 7)):
            parts.append(rng.choice(WORDS) if rng.random() < 0.6 else rng.choice(PIECES))
            if rng.random() < 0.6:
                parts.append(" ")
        texts.append("".join(parts))
    return texts[:N_STRINGS]


def corpus(texts):
    rng = random.Random(4)
    lines = [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(400)]
    lines += ["  ".join(rng.choice(WORDS) for _ in range(6)) for _ in range(60)]
    return lines + texts[:300]


def sentencepiece_model(path, lines, model_type, **options):
    text = path.with_suffix(".txt")
    text.write_text("\n".join(line.replace("\n", " ") for line in lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(path.with_suffix("")), model_type=model_type,
        hard_vocab_limit=False, minloglevel=2, **options,
    )
    text.unlink()
    path.with_suffix(".vocab").unlink()


def write_ids(directory, plain, special, differs=None):
    changed = {i: b for i, (a, b) in enumerate(zip(plain, special)) if a != b}
    ids = {"plain": plain, "special": changed}
    if differs is not None:
        ids["transformers_differs"] = differs
    (directory / "ids.json").write_text(json.dumps(ids, separators=(",", ":")) + "\n")


def encode(tokenizer, texts, as_text):
    tokenizer.encode_special_tokens = as_text
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def save_ids(directory, tokenizer, texts):
    write_ids(directory, encode(tokenizer, texts, True), encode(tokenizer, texts, False))


def save_unigram_ids(directory, tokenizer, texts):
    """SentencePiece's own ids: transformers' differ where its normalizer takes a grapheme
    for one character, and it never reads `</s>` as text. Where two ways to cut a word are
    equally likely, transformers' choice."""
    model = sentencepiece.SentencePieceProcessor(str(directory / "spiece.model"))
    tokens = {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items()}
    split = re.compile("(" + "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ")")
    plain = [model.encode(text) for text in texts]
    special = []
    for text in texts:
        parts = [part for part in split.split(text) if part]
        special.append([id for part in parts for id in ([tokens[part]] if part in tokens else model.encode(part))])
    for i, text in enumerate(texts):
        for ids, as_text in [(plain, True), (special, False)]:
            other = encode(tokenizer, [text], as_text)[0]
            if max(ids[i] + other, default=0) < len(model):
                likelihoods = [sum(map(model.get_score, cut)) for cut in (ids[i], other)]
                if sorted(ids[i]) == sorted(other) and abs(likelihoods[0] - likelihoods[1]) < 1e-4:
                    ids[i] = other
    differs = [i for i, ids in enumerate(encode(tokenizer, texts, False)) if ids != special[i]]
    print("unigram: transformers differs on", [texts[i] for i in differs])
    write_ids(directory, plain, special, differs)


def save_sentencepiece(directory, texts):
    """A Vicuna's tokenizer as InstructBLIP's files have it: `</s>` begins a text, tokens are
    added, and the normalizer puts a space before every text. (transformers 5 puts it only
    before a text without one when it makes the tokenizer anew, unlike SentencePiece.)"""
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    vicuna = LlamaTokenizer.from_pretrained(directory, bos_token="</s>", eos_token="</s>", unk_token="<unk>")
    vicuna.add_special_tokens({"pad_token": "[PAD]"})
    vicuna.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    vicuna.save_pretrained(directory)
    tokenizer = vicuna._tokenizer
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    save_ids(directory, tokenizer, texts)

    model = sentencepiece.SentencePieceProcessor(str(directory / "tokenizer.model"))
    different = [text for text, ids in zip(texts, encode(tokenizer, texts, True)) if model.encode(text) != ids]
    print("sentencepiece: transformers differs on", different)


def make_tokenizers(texts):
    lines = corpus(texts)
    root = OUT / "tokenizers"

    # As Llama's: byte fallback, no normalization, spaces kept.
    spm = root / "sentencepiece"
    spm.mkdir(parents=True)
    sentencepiece_model(
        spm / "tokenizer.model", lines, "bpe", vocab_size=500, byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, add_dummy_prefix=True,
    )
    save_sentencepiece(spm, texts)

    # As OPT's: GPT-2's, its four special tokens in front.
    gpt2 = root / "byte_level"
    gpt2.mkdir()
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    ))
    trained.model.save(str(gpt2))
    tokenizer = GPT2Tokenizer(
        vocab=str(gpt2 / "vocab.json"), merges=str(gpt2 / "merges.txt"),
        bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>", add_bos_token=True,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(gpt2)
    save_ids(gpt2, tokenizer._tokenizer, texts)

    # As T5's: nmt_nfkc, padding 0, end 1, unknown 2.
    unigram = root / "unigram"
    unigram.mkdir()
    sentencepiece_model(
        unigram / "spiece.model", lines, "unigram", vocab_size=500, character_coverage=0.98,
        normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )
    (unigram / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 20}))
    tokenizer = AutoTokenizer.from_pretrained(unigram, extra_ids=20)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(unigram)
    save_unigram_ids(unigram, tokenizer._tokenizer, texts)


def sharpen(model, factor):
    """Makes matrices larger, and vectors (norms, biases) vary."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def save_model(name, model, prefix="", dtype=torch.float32, drop=(), config=None):
    directory = OUT / "models" / name
    directory.mkdir(parents=True)
    tensors = {
        prefix + key: value.to(dtype).clone().contiguous()
        for key, value in model.state_dict().items() if key not in drop
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    # As rounded to what is saved.
    model.load_state_dict({key: value.to(dtype).float() for key, value in model.state_dict().items()})
    config = config or model.config.to_dict()
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return directory


def greedy(model, prompt):
    """First-step logits and 12 ids, or None where two choices were too close."""
    ids = list(prompt)
    with torch.no_grad():
        for step in range(12):
            out = model(input_ids=torch.tensor([ids])).logits[0, -1]
            if step == 0:
                first = out
            top = out.topk(2).values
            if top[0] - top[1] < 1e-2:
                return first, None
            ids.append(int(out.argmax()))
    return first, ids[len(prompt):]


def decoder_reference(directory, model, n_vocab, tokenizer, prefix=""):
    rng = random.Random(6)
    model.eval()
    prompts, logits, answers = [], [], []
    while len(prompts) < 6:
        length = [1, 3, 9, 20, 33, 64][len(prompts)]
        prompt = [rng.randrange(4, n_vocab) for _ in range(length)]
        first, answer = greedy(model, prompt)
        # A choice that rounding could change proves nothing.
        if answer is not None and answer not in answers:
            prompts.append(prompt)
            logits.append(first)
            answers.append(answer)
    write_reference(directory, {"logits": torch.stack(logits)}, {
        "tokenizer": tokenizer, "prefix": prefix, "prompts": prompts, "answers": answers,
    })


def write_reference(directory, tensors, golden):
    save_file({key: value.contiguous() for key, value in tensors.items()}, directory / "reference.safetensors")
    (directory / "golden.json").write_text(json.dumps(golden) + "\n")


def make_llama():
    size = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "max_position_embeddings": 128}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
                                         rope_parameters={"rope_type": "default", "rope_theta": 50000.0}))
    sharpen(model, 8)
    decoder_reference(save_model("llama_gqa", model), model, 500, "sentencepiece")

    # Inside a BLIP-2, heads all their own, head tied, in bf16.
    model = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=4, tie_word_embeddings=True))
    sharpen(model, 8)
    config = {"model_type": "blip-2", "text_config": model.config.to_dict()}
    directory = save_model("llama_tied", model, "language_model.", torch.bfloat16, ["lm_head.weight"], config)
    decoder_reference(directory, model, 500, "sentencepiece", "language_model.")


def make_opt():
    size = {"hidden_size": 32, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 128, "word_embed_proj_dim": 32}
    # Today's files: rows padded to a multiple of 64, head tied and not stored, defaults left out.
    torch.manual_seed(1)
    model = OPTForCausalLM(OPTConfig(**size, vocab_size=512))
    sharpen(model, 8)
    config = {"model_type": "blip-2", "text_config": {"model_type": "opt", "vocab_size": 512, **size}}
    directory = save_model("opt_padded", model, "language_model.", drop=["lm_head.weight"], config=config)
    decoder_reference(directory, model, 500, "byte_level", "language_model.")

    # The first files: the head stored beside the embeddings it is tied to.
    model = OPTForCausalLM(OPTConfig(**size, vocab_size=504))
    sharpen(model, 8)
    decoder_reference(save_model("opt_stored_head", model, dtype=torch.float16), model, 500, "byte_level")


class TableGelu(torch.nn.Module):
    """llama.cpp's on a CPU."""

    def forward(self, x):
        gelu = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, gelu))


def make_t5():
    torch.manual_seed(2)
    config = T5Config(vocab_size=256, d_model=32, d_kv=12, d_ff=64, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu",
                      tie_word_embeddings=False, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    assert not model.config.scale_decoder_outputs
    sharpen(model, 1)
    # Flan-T5's head is not its embeddings.
    model.lm_head.weight = torch.nn.Parameter(torch.randn(256, 32) * 0.4)
    model.eval()
    saved = model.config.to_dict() | {"tie_word_embeddings": False}
    saved.pop("scale_decoder_outputs", None)
    directory = save_model("t5", model, config={"model_type": "blip-2", "text_config": saved}, prefix="language_model.")
    rng = random.Random(7)
    prompts = [[rng.randrange(3, 200) for _ in range(length)] + [1] for length in (1, 3, 9, 20, 33)]
    tensors = {}
    # llama.cpp's, on a CPU from a table in f16; and the exact one that BLIP-2 uses.
    for name, activation in [("logits", TableGelu()), ("logits_erf", torch.nn.GELU())]:
        for module in model.modules():
            if type(module).__name__ == "T5DenseGatedActDense":
                module.act = activation
        rows = []
        with torch.no_grad():
            for prompt in prompts:
                out = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[0, 5, 9]]))
                rows.append(out.logits[0])
        tensors[name] = torch.stack(rows)
    write_reference(directory, tensors, {
        "tokenizer": "unigram", "prefix": "language_model.", "prompts": prompts, "decoder_ids": [0, 5, 9],
    })


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    texts = strings()
    (OUT / "strings.json").write_text(json.dumps(texts, ensure_ascii=False) + "\n")
    make_tokenizers(texts)
    make_llama()
    make_opt()
    make_t5()


if __name__ == "__main__":
    main()
