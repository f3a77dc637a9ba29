"""Makes tests/golden/llm/beams.json: what transformers' beam search, penalties and
least lengths answer with the language model of make_llm.py (run that first).

    python3 tests/golden/make_beams.py

needs torch and transformers (made with torch 2.15, transformers 5.23.0). The twenty
pairs are those of all pictures and prompts whose answers stay the same, in every
setting, when noise of 2e-4 is laid over the logits: about twenty times what two
implementations in f32 differ by. The smallest gap between a best answer's score and
the next best one's is printed.

The soft prompt's rows stand under the id of BOS, which is in each prompt anyway, so that
the repetition penalty counts nothing that is not text.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import Blip2ForConditionalGeneration, LogitsProcessor, LogitsProcessorList

import make_llm

LLM = Path(__file__).parent / "llm"
N_PAIRS = 20
NOISE = 2e-4
SETTINGS = [
    {"num_beams": beams, "length_penalty": penalty}
    for beams in (2, 3, 5)
    for penalty in (-1.0, 0.0, 1.0, 2.0)
] + [
    {"num_beams": 5, "length_penalty": -1.0, "min_new_tokens": 8},
    {"num_beams": 5, "length_penalty": 1.0, "repetition_penalty": 1.5},
    {"num_beams": 3, "length_penalty": 0.0, "repetition_penalty": 1.5, "min_new_tokens": 6},
    {"num_beams": 1, "repetition_penalty": 1.5},
    {"num_beams": 1, "min_new_tokens": 12},
]


class Noise(LogitsProcessor):
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids, scores):
        noise = torch.rand(scores.shape, generator=self.generator) * 2 - 1
        return scores + noise * NOISE


def answer(model, soft, ids, setting, seed=None):
    """Ids of the answer, and by how much it beats the next best one."""
    embeds = torch.cat([soft, model.get_input_embeddings()(torch.tensor(ids))])[None]
    input_ids = torch.tensor([[ids[0]] * len(soft) + ids])
    beams = setting["num_beams"]
    out = model.generate(
        inputs_embeds=embeds,
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=make_llm.MAX_NEW_TOKENS,
        num_return_sequences=min(beams, 2),
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=1,
        logits_processor=LogitsProcessorList([] if seed is None else [Noise(seed)]),
        **setting,
    )
    tokens = out.sequences[0, input_ids.shape[1] :].tolist()
    if 1 in tokens:
        tokens = tokens[: tokens.index(1) + 1]
    gap = (out.sequences_scores[0] - out.sequences_scores[1]).item() if beams > 1 else None
    return tokens, gap


def main():
    torch.set_num_threads(1)
    model = Blip2ForConditionalGeneration.from_pretrained(LLM / "checkpoint").eval().language_model
    golden = json.loads((LLM / "golden.json").read_text())
    soft = load_file(LLM / "reference.safetensors")["soft_prompt"]
    prompt_ids = {case["prompt"]: case["prompt_ids"] for case in golden["cases"]}
    pairs = [(i, name, p, ids) for i, name in enumerate(golden["pictures"]) for p, ids in prompt_ids.items()]

    cases, smallest = [], float("inf")
    with torch.no_grad():
        for i, name, prompt, ids in pairs:
            answers, gaps = [], []
            for setting in SETTINGS:
                tokens, gap = answer(model, soft[i], ids, setting)
                if any(answer(model, soft[i], ids, setting, seed)[0] != tokens for seed in range(2)):
                    print(f"{name}, {prompt!r}: unsteady in {setting}", flush=True)
                    break
                answers.append(tokens)
                gaps += [gap] if gap is not None else []
            if len(answers) == len(SETTINGS):
                smallest = min(smallest, *gaps)
                cases.append({"picture": name, "prompt_ids": ids, "answers": answers})
                print(f"{name}, {prompt!r}: {[len(a) for a in answers]}", flush=True)
            if len(cases) == N_PAIRS:
                break
    assert len(cases) == N_PAIRS, len(cases)
    print(f"smallest gap between the best two answers: {smallest:.2e}")
    written = {
        "made_by": "tests/golden/make_beams.py",
        "max_new_tokens": make_llm.MAX_NEW_TOKENS,
        "settings": SETTINGS,
        "cases": cases,
    }
    text = json.dumps(written)
    for mark in ('{"num_beams"', '{"picture"'):
        text = text.replace(mark, "\n" + mark)
    (LLM / "beams.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
