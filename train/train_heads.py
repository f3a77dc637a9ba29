#!/usr/bin/env python3
"""Train the demo's Q-Former with the three objectives of BLIP-2's first stage.

    python train/train_heads.py --data DATA --out RUN

Contrast of pictures and captions of a batch (ITC); captions by the Q-Former itself (ITG); matching, with a wrong caption
for each picture that is near by ITC, or wrong in one detail (ITM). All losses have one weight (LAVIS,
blip2_qformer.py).

The query branch begins as that of the trained bridge, demo/bridge.safetensors, and knows what there is to see. So there are
six parts, each for so many minutes:

1. "text" leaves the query branch as it is, computes its rows once for each picture, and teaches the text branch to meet
   them there, by ITC and ITG; a step costs a tenth of a whole one. Words begin as what the queries say of pictures of them.
2. "both" trains everything by ITC and ITG, which come from one pass, since queries do not see captions.
3. "deeper" brings ITM, and with it a third layer, which begins by adding nothing: in two, words can meet what the queries
   saw only in the last, half of which they have not seen by then.
4. "apart" leaves ITM out and teaches queries and text to leave each other alone where everything sees everything: after the third
   part, text that had met queries was a copy of them, and nothing was left to compare.
5. "compare" adds a fourth layer and trains that and the heads alone, by all three. It begins with an attention that compares as
   ITC does.
6. "match" trains everything by all three, and holds the two sides apart before the last layer.

The last weights, averaged over steps, are written to RUN/heads.safetensors, the words to RUN/vocab.txt.
"""

import argparse
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captions import Captioning, plain, vocabulary, words, write_vocabulary
from data import read_names
from heads import LAYERS, PAD, QUERIES, Heads, Tokens
from scenes import Scene
from train import AVERAGING, REPORT_SECONDS, Pictures, Tally

TEXT_BATCH, SPOKEN_SHARE, TEXT_RATE = 192, 0.25, 2e-3
"""Pictures of a step, the share of them that ITG captions, and the highest learning rate, of the first part."""
BATCH, RATE = 48, 5e-4
"""The same of the second."""
ALL_BATCH, ALL_RATE = 32, 5e-4
"""And of the others."""
APART_WEIGHT = 0.3
"""Of how much queries and text look at each other before the last layer of ITM."""
WRONG = ("detail", "near", "any")
"""Kinds of wrong captions for ITM, each as often: wrong in one detail; near by ITC, of other pictures of the batch and of all things
alone; of any other picture of the batch."""
LABEL_SMOOTHING = 0.1
NAME_ROW = 1
"""The row of the bridge that names the first thing (rows.py)."""
BELOW = ("query_tokens", "embeddings.", "qformer.")
"""What the fifth part leaves as it is, but for the layer that it adds."""
SHARED = ("query_tokens", "vision_model", "attention.", "_query.", "qformer.layernorm")
"""Parts of the names of what the query branch is made of."""


@dataclass
class Options:
    """The command line; see main()."""

    data: Path
    out: Path
    bridge: Path
    text_minutes: float
    both_minutes: float
    deeper_minutes: float
    apart_minutes: float
    compare_minutes: float
    match_minutes: float
    go_on: bool
    batch_scale: int
    without_style: str | None
    threads: int
    device: str
    float32: bool


class Trainer:
    def __init__(self, options: Options):
        self.options, self.device = options, torch.device(options.device)
        self.names, taken_for = read_names(options.data)
        torch.manual_seed(0)
        self.random = random.Random(0)
        self.alone = [name.text for name in self.names]
        self.tokens = Tokens(vocabulary(self.names))
        self.heads = Heads(self.tokens.begin + 1, LAYERS + 1 if options.go_on else LAYERS)
        if options.go_on:
            self.heads.load(options.out / "heads.safetensors")
        else:
            self.heads.start_from_bridge(options.bridge)
        self.heads.to(self.device).train()
        self.pictures = Pictures(options, {name.text for name in self.names}, np.random.default_rng(0))
        self.captioning = Captioning(self.names, taken_for, self.random)
        self.tally = Tally()

    def run(self) -> None:
        text = [p for name, p in self.heads.named_parameters() if not any(part in name for part in SHARED)]
        if not self.options.go_on:
            rows = self._query_rows()
            self._begin_words(rows)
            self._train("text", text, self.options.text_minutes, TEXT_BATCH, TEXT_RATE, lambda count: self._text_loss(rows, count))
            del rows
            self._train("both", list(self.heads.parameters()), self.options.both_minutes, BATCH, RATE, self._loss)
            self._deepen()
            self._train("deeper", list(self.heads.parameters()), self.options.deeper_minutes, ALL_BATCH, ALL_RATE, lambda count: self._loss(count, self._match))
        self._train("apart", list(self.heads.parameters()), self.options.apart_minutes, ALL_BATCH, ALL_RATE, lambda count: self._loss(count, self._apart))
        self._deepen()
        below = [p for name, p in self.heads.named_parameters() if name.startswith(BELOW) and f".{LAYERS + 1}." not in name]
        for part, minutes, match in (("compare", self.options.compare_minutes, self._match), ("match", self.options.match_minutes, self._keep)):
            for parameter in below:
                parameter.requires_grad_(part == "match")
            self._train(part, list(self.heads.parameters()), minutes, ALL_BATCH, ALL_RATE, lambda count, match=match: self._loss(count, match))

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=not self.options.float32)

    def _deepen(self) -> None:
        self.heads = self.heads.deepened().to(self.device).train()

    def _save(self) -> None:
        self.heads.save(self.options.out / "heads.safetensors")
        write_vocabulary(self.options.out / "vocab.txt", self.names)

    def _train(self, part: str, parameters: list[nn.Parameter], minutes: float, batch: int, top: float, loss: Callable[[int], Tensor]) -> None:
        """Steps of `loss` for so long; the weights are their average afterwards."""
        trained = [p for p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim == 2], "weight_decay": 0.05},
            {"params": [p for p in trained if p.ndim != 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
        averaged = {name: tensor.detach().clone() for name, tensor in self.heads.state_dict().items()}
        batch *= self.options.batch_scale
        start = reported = time.monotonic()
        pictures = step = 0
        while (share := (time.monotonic() - start) / 60 / minutes) < 1:
            rate = top * min(1.0, share / 0.03 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * share)) + 1e-6
            for group in optimizer.param_groups:
                group["lr"] = rate
            step += 1
            pictures += batch
            loss(batch).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            self.heads.zero_grad()
            keep = min(AVERAGING, 1 - 1 / step)
            for name, tensor in self.heads.state_dict().items():
                averaged[name].lerp_(tensor.detach(), 1 - keep)
            now = time.monotonic()
            if now - reported > REPORT_SECONDS:
                print(f"{part} {share * minutes:5.1f} min {pictures / (now - reported):5.1f} pictures/s step {step} {self.tally.report()}", flush=True)
                reported, pictures = now, 0
        self.heads.load_state_dict(averaged)
        self._save()

    @torch.no_grad()
    def _query_rows(self) -> list[tuple[Tensor, Scene]]:
        """Rows behind each layer [layers, QUERIES, width] float16 of a view of every picture."""
        found = []
        places = self.pictures.plain + self.pictures.parts
        for start in range(0, len(places), BATCH):
            features, scenes = self.pictures.get(places[start : start + BATCH])
            with self._precision():
                looked = self.heads.looked_at(self.pictures.changed(features).to(self.device))
                rows = torch.stack(self.heads.query_rows(looked), 1)
            found += zip(rows.half(), scenes)
        print(f"query rows of {len(found)} pictures", flush=True)
        return found

    @torch.no_grad()
    def _begin_words(self, rows: list[tuple[Tensor, Scene]]) -> None:
        """Each word of a name begins as the mean, over pictures of such a thing alone, of the row that names it."""
        seen: dict[str, list[Tensor]] = {}
        for row, scene in rows:
            if scene.layout == "single":
                for word in words(scene.names[0]):
                    seen.setdefault(word, []).append(row[-1, NAME_ROW].float())
        means = torch.stack([torch.stack(found).mean(0) for found in seen.values()])
        table = self.heads.embeddings.word_embeddings.weight
        table[[self.tokens.ids[word] for word in seen]] = (means - means.mean(0)) / means.std(0) * table.shape[1] ** -0.5

    def _text_loss(self, rows: list[tuple[Tensor, Scene]], count: int) -> Tensor:
        chosen = self.random.sample(rows, count)
        scenes = [scene for _, scene in chosen]
        captions = [self.captioning.true(scene) for scene in scenes]
        behind = torch.stack([row for row, _ in chosen]).float()
        before = self.heads.qformer.layernorm(self.heads.query_tokens).detach().expand(count, -1, -1)
        with self._precision():
            ids = self.tokens(captions[: round(SPOKEN_SHARE * count)], self.tokens.begin).to(self.device)
            spoken = self.heads.text_branch(ids, [before[: len(ids)], *behind[: len(ids)].unbind(1)])[-1]
            spoken = self.heads.caption_logits(spoken[:, :-1])
            texts = self.heads.text_features(self.tokens(captions).to(self.device))
            seen = self.heads.picture_features(behind[:, -1])
        return self._contrast(self._likeness(seen, texts), scenes) + self._caption(spoken, ids)

    def _loss(self, count: int, match: Callable | None = None) -> Tensor:
        """ITC and ITG, and what `match` adds."""
        features, scenes = self.pictures.batch(count)
        captions = [self.captioning.true(scene) for scene in scenes]
        with self._precision():
            looked = self.heads.looked_at(features.to(self.device))
            ids = self.tokens(captions, self.tokens.begin).to(self.device)
            joint = self.heads.joint(looked, ids, causal=True)
            spoken = self.heads.caption_logits(joint[-1][:, QUERIES:-1])
            texts = self.heads.text_features(self.tokens(captions).to(self.device))
            seen = self.heads.picture_features(joint[-1][:, :QUERIES])
            loss = self._contrast(self._likeness(seen, texts), scenes) + self._caption(spoken, ids)
            if match:
                wrong = self._wrong_captions(scenes, captions, seen, texts)
                loss = loss + match(looked, self.tokens(captions + wrong).to(self.device))
        return loss

    @torch.no_grad()
    def _wrong_captions(self, scenes: list[Scene], captions: list[str], seen: Tensor, texts: Tensor) -> list[str]:
        every = [plain([name]) for name in self.alone]
        likeness = self._likeness(seen, torch.cat([texts, self.heads.text_features(self.tokens(every).to(self.device))]))
        # A caption of some of the things that are there is not wrong.
        said = [set(scene.names) for scene in scenes] + [{name} for name in self.alone]
        inside = torch.tensor([[names <= set(scene.names) for names in said] for scene in scenes], device=self.device)
        scores = likeness * self.heads.inverse_temperature.exp()
        others = (0 * scores)[:, : len(scenes)]
        near, other = (torch.multinomial(chance.masked_fill(inside[:, : chance.shape[1]], -1e4).softmax(1), 1)[:, 0].tolist() for chance in (scores, others))
        wrong = []
        for n, scene in enumerate(scenes):
            found = {"near": near[n], "any": other[n]}.get(self.random.choice(WRONG))
            wrong.append(self.captioning.false(scene) if found is None or inside[n, found] else (captions + every)[found])
        return wrong

    def _match(self, looked: list, ids: Tensor) -> Tensor:
        """ITM; the first half of `ids` are the pictures' own captions, the other wrong ones."""
        return self._match_loss(self.heads.joint(looked, ids, causal=False)[-1])

    def _apart(self, looked: list, ids: Tensor) -> Tensor:
        """How much sides look at each other, of each picture with one of its two captions."""
        pictures = torch.arange(len(ids) // 2, device=ids.device)
        ids = ids.unflatten(0, (2, -1))[pictures % 2, pictures]
        return self._across(self.heads.joint(looked, ids, causal=False), ids)

    def _keep(self, looked: list, ids: Tensor) -> Tensor:
        """ITM, and how much sides look at each other before the last layer."""
        joint = self.heads.joint(looked, ids, causal=False)
        return self._match_loss(joint[-1]) + self._across(joint[:-1], ids)

    def _across(self, joint: list[Tensor], ids: Tensor) -> Tensor:
        across = self.heads.looks_across(joint, ids)
        self.tally.add(**{f"across{n}": value.item() for n, value in enumerate(across, 1)})
        return APART_WEIGHT * across.mean()

    def _match_loss(self, rows: Tensor) -> Tensor:
        logits = self.heads.match_logits(rows)
        wanted = torch.tensor([1, 0], device=self.device).repeat_interleave(len(rows) // 2)
        loss = F.cross_entropy(logits, wanted)
        self.tally.add(match=loss.item(), matched=(logits.argmax(1) == wanted).float().mean().item())
        return loss

    @staticmethod
    def _likeness(seen: Tensor, texts: Tensor) -> Tensor:
        """[pictures, texts]: the largest cosine of a picture's rows with a text."""
        return torch.einsum("pqf,tf->ptq", seen, texts).amax(-1)

    def _contrast(self, likeness: Tensor, scenes: list[Scene]) -> Tensor:
        """ITC, both ways. Pictures of the same things share their captions."""
        scores = likeness * self.heads.inverse_temperature.exp().clamp(max=100)
        numbers = {caption: n for n, caption in enumerate(dict.fromkeys(plain(scene.names) for scene in scenes))}
        shown = torch.tensor([numbers[plain(scene.names)] for scene in scenes], device=scores.device)
        wanted = (shown[:, None] == shown).float()
        wanted = wanted / wanted.sum(1, keepdim=True)
        loss = sum(F.cross_entropy(way, wanted, label_smoothing=LABEL_SMOOTHING) for way in (scores, scores.T)) / 2
        found = shown[scores.argmax(1)] == shown
        self.tally.add(contrast=loss.item(), nearest=found.float().mean().item())
        return loss

    def _caption(self, spoken: Tensor, ids: Tensor) -> Tensor:
        """ITG."""
        loss = F.cross_entropy(spoken.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD, label_smoothing=LABEL_SMOOTHING)
        self.tally.add(caption=loss.item())
        return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what data.py made")
    parser.add_argument("--out", type=Path, required=True, help="directory for the weights and the words")
    parser.add_argument("--bridge", type=Path, default=Path(__file__).resolve().parent.parent / "demo" / "bridge.safetensors", help="where the query branch begins")
    parser.add_argument("--text-minutes", type=float, default=12, help="of the first part, after the query rows")
    parser.add_argument("--both-minutes", type=float, default=18, help="of the second")
    parser.add_argument("--deeper-minutes", type=float, default=24, help="of the third")
    parser.add_argument("--apart-minutes", type=float, default=10, help="of the fourth")
    parser.add_argument("--compare-minutes", type=float, default=5, help="of the fifth")
    parser.add_argument("--match-minutes", type=float, default=48, help="of the sixth")
    parser.add_argument("--go-on", action="store_true", help="the last three alone, from what the third left in OUT")
    parser.add_argument("--batch-scale", type=int, default=1, help="multiply the batches, for a GPU")
    parser.add_argument("--without-style", help="leave this training style out, to choose settings by")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads on a CPU")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--float32", action="store_true", help="not bfloat16: some CPUs have products of f32 that are faster")
    options = Options(**vars(parser.parse_args()))
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    Trainer(options).run()


if __name__ == "__main__":
    main()
