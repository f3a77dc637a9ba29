"""Makes tests/golden/llm/scores.json: what transformers makes of given answers, by
teacher forcing, with the model of make_llm.py (run that first).

    python3 tests/golden/make_scores.py

needs torch and transformers (made with torch 2.15, transformers 5.23.0). For each of the
20 cases of golden.json five answers are scored: four texts, tokenized behind the prompt
with a space between where the prompt does not end with one, and the greedy answer. Each
is followed by EOS. `logprobs` holds log p(token | picture, prompt, tokens before) of each.
"""

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoTokenizer, Blip2ForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

import make_llm

LLM = Path(__file__).parent / "llm"
TEXTS = ["red", "a drawing of a large cat", "größer: 3 Äpfel 😀", "two of them\nbeside it"]


def score(model, pixels, prompt_ids, answer_ids):
    ids = torch.tensor([[2] * make_llm.N_QUERIES + prompt_ids + answer_ids])
    with torch.no_grad():
        logits = model(
            pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)
        ).logits[0]
    # Logits of a position are of the token behind it.
    first = make_llm.N_QUERIES + len(prompt_ids) - 1
    logprobs = torch.log_softmax(logits[first : first + len(answer_ids)].double(), -1)
    return logprobs.gather(1, torch.tensor(answer_ids)[:, None])[:, 0].tolist()


def main():
    torch.set_num_threads(1)
    checkpoint = LLM / "checkpoint"
    model = Blip2ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    processor = BlipImageProcessorPil.from_pretrained(checkpoint)
    cases = []
    for case in json.loads((LLM / "golden.json").read_text())["cases"]:
        picture = Image.open(LLM / "pictures" / f"{case['picture']}.png")
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
        prompt_ids = case["prompt_ids"]
        answers = []
        for text in TEXTS:
            space = "" if case["prompt"][-1].isspace() else " "
            whole = [0] + tokenizer.encode(case["prompt"] + space + text, add_special_tokens=False)
            assert whole[: len(prompt_ids)] == prompt_ids, (case["prompt"], text)
            answers.append((text, whole[len(prompt_ids) :] + [1]))
        greedy = [id for id in case["answer_ids"] if id != 1] + [1]
        answers.append((None, greedy))
        cases.append(
            {
                "picture": case["picture"],
                "prompt": case["prompt"],
                "answers": [
                    {
                        "text": text,
                        "ids": ids,
                        "logprobs": [round(p, 6) for p in score(model, pixels, prompt_ids, ids)],
                    }
                    for text, ids in answers
                ],
            }
        )
    out = {"made_by": "tests/golden/make_scores.py", "cases": cases}
    (LLM / "scores.json").write_text(json.dumps(out, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
