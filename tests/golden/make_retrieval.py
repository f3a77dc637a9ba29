#!/usr/bin/env python3
"""Retrieval and filtering, as transformers' scores have them: `golden/retrieval/`.

    python -m pip install pyarrow==25.0.1
    python tests/golden/make_retrieval.py     # torch 2.15.0, transformers 5.23.0; after make_stage1.py

writes

- `coco_karpathy_test.json`: 13 pictures of golden/llm and of the demo, with 2 to 5 captions each, in the form in which
  LAVIS publishes Karpathy's splits;
- `golden.json`: what stage1/checkpoint, as a Blip2ForImageTextRetrieval, makes of every pair, and recall at 1, 5 and 10
  both ways, as LAVIS's `compute_sim_matrix` and `_report_metrics` compute it, for several `k_test`; with captions as they
  are and as its `blip_caption` leaves them;
- `pairs.parquet`: pictures with captions, and columns of every kind beside them: optional, repeated, nested.
"""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from make_stage1 import MAX_TEXT, padded
from PIL import Image
from transformers import AutoTokenizer, Blip2ForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

GOLDEN = Path(__file__).resolve().parent
OUT = GOLDEN / "retrieval"
CHECKPOINT = GOLDEN / "stage1/checkpoint"
DEMO = GOLDEN.parents[1] / "demo/pictures"
PICTURES = [GOLDEN / f"llm/pictures/{name}.png" for name in ["ramp", "boxes", "circle", "face", "stripes"]]
PICTURES += [
    DEMO / f"{name}.png"
    for name in ["balloons", "banana", "bicycle", "dog", "lion-umbrella", "penguin", "rocket-pizza", "sunflower"]
]
WORDS = "a red blue small large dog cat box circle face stripes street man woman bird tree yellow picture two three".split()


def captions():
    """Texts without a meaning, some of them with what `blip_caption` takes away."""
    random = np.random.default_rng(7)
    for i in range(len(PICTURES)):
        texts = []
        for j in range(2 + i % 4):
            words = random.choice(WORDS, size=random.integers(2, 8))
            text = " ".join(words)
            texts.append([text, text.capitalize() + ".", f'"{text}"  ({words[0]})', text][j % 4])
        yield texts


def blip_caption(caption):
    caption = re.sub(r"([.!\"()*#:;~])", " ", caption.lower())
    caption = re.sub(r"\s{2,}", " ", caption)
    caption = caption.rstrip("\n").strip(" ")
    return " ".join(caption.split(" ")[:50])


@torch.no_grad()
def scores(model, tokenizer, pixels, texts):
    """Similarity and logit of a match, `[pictures, texts]`."""
    ids = [tokenizer(text, truncation=True, max_length=MAX_TEXT)["input_ids"] for text in texts]
    input_ids, mask = padded(ids)
    n_queries, image = model.config.num_query_tokens, model.config.image_token_index
    input_ids = torch.cat([torch.full((len(ids), n_queries), image), input_ids], dim=1)
    mask = torch.cat([torch.ones(len(ids), n_queries, dtype=mask.dtype), mask], dim=1)
    similarity, match, probability = [], [], []
    for i in range(len(pixels)):
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        inputs["pixel_values"] = pixels[i : i + 1].repeat(len(ids), 1, 1, 1)
        similarity.append(model(**inputs).logits_per_image[0])
        logits = model(**inputs, use_image_text_matching_head=True).logits_per_image
        match.append(logits[:, 1])
        probability.append(logits.softmax(-1)[:, 1])
    return torch.stack(similarity), torch.stack(match), torch.stack(probability)


def recalls(similarity, match, owner, k):
    """`compute_sim_matrix` and `_report_metrics`; with k = 0, of the similarity alone.

    LAVIS leaves all behind the first k equal, whose order is then numpy's; here they follow by their similarity.
    """
    similarity, match = similarity.double(), match.double()

    def reranked(similarity, match):
        if k == 0:
            return similarity
        scores = similarity - 100.0
        for i, row in enumerate(similarity):
            top, places = row.topk(k=min(k, len(row)))
            scores[i, places] = match[i, places] + top
        return scores

    texts_of = [[t for t, p in enumerate(owner) if p == i] for i in range(len(similarity))]
    i2t = reranked(similarity, match).numpy()
    t2i = reranked(similarity.t(), match.t()).numpy()
    by_picture = []
    for i, row in enumerate(i2t):
        order = np.argsort(row)[::-1]
        by_picture.append(min(int(np.where(order == t)[0][0]) for t in texts_of[i]))
    by_text = [int(np.where(np.argsort(row)[::-1] == owner[t])[0][0]) for t, row in enumerate(t2i)]
    percent = lambda places, at: 100.0 * sum(place < at for place in places) / len(places)
    found = [percent(by_text, at) for at in (1, 5, 10)] + [percent(by_picture, at) for at in (1, 5, 10)]
    return found + [sum(found) / 6]


def tables(texts):
    pictures = [{"bytes": path.read_bytes(), "path": path.name} for path in PICTURES[:5]]
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table(
        {
            "id": pyarrow.array(range(5), pyarrow.int64()),
            "image": pyarrow.array(pictures, image),
            "caption": pyarrow.array([texts[i][0] for i in range(4)] + [None], pyarrow.string()),
            "tags": pyarrow.array([["a", None, "b"], [], None, ["c"], ["d", "e"]], pyarrow.list_(pyarrow.string())),
            "box": pyarrow.array(
                [[{"x": 1.5, "of": [1]}], [], [{"x": None, "of": []}, {"x": 2.5, "of": [2, 3]}], None, [{"x": 3.5, "of": None}]],
                pyarrow.list_(pyarrow.struct([("x", pyarrow.float32()), ("of", pyarrow.list_(pyarrow.int32()))])),
            ),
            "good": pyarrow.array([True, None, False, True, False]),
            "when": pyarrow.array([1, 2, None, 4, 5], pyarrow.timestamp("ms")),
            "key": pyarrow.array([b"0123", b"4567", b"89ab", b"cdef", None], pyarrow.binary(4)),
        }
    )
    pyarrow.parquet.write_table(table, OUT / "pairs.parquet", row_group_size=3, compression="snappy")


def main():
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    model = Blip2ForImageTextRetrieval.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    processor = BlipImageProcessorPil.from_pretrained(CHECKPOINT)
    images = [Image.open(path).convert("RGB") for path in PICTURES]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    per_picture = list(captions())
    published = [{"image": path.name, "caption": texts} for path, texts in zip(PICTURES, per_picture)]
    (OUT / "coco_karpathy_test.json").write_text(json.dumps(published, indent=1) + "\n")
    owner = [i for i, texts in enumerate(per_picture) for _ in texts]
    golden = {"made_by": "tests/golden/make_retrieval.py", "owner": owner, "names": [path.name for path in PICTURES]}
    for name, clean in [("plain", lambda text: text), ("blip_caption", blip_caption)]:
        texts = [clean(text) for texts in per_picture for text in texts]
        similarity, match, probability = scores(model, tokenizer, pixels, texts)
        golden[name] = {
            "texts": texts,
            "similarity": similarity.tolist(),
            "match_logit": match.tolist(),
            "probability": probability.tolist(),
            "recalls": {str(k): recalls(similarity, match, owner, k) for k in (0, 3, 5, 128)},
        }
        print(name, golden[name]["recalls"])
    (OUT / "golden.json").write_text(json.dumps(golden) + "\n")
    tables(per_picture)


if __name__ == "__main__":
    main()
