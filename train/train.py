#!/usr/bin/env python3
"""Train the demo's bridge in three stages.

    python train/train.py --data DATA --checkpoint CHECKPOINT --out RUN

Stage 1 has no pictures: it looks for rows, made from the truth about a scene, that the frozen
language model can answer questions from (rows.py). Stage 2 has no language model: it teaches the
Q-Former to write those rows from a picture. Stage 3 is BLIP-2's second: picture, Q-Former,
projection, frozen language model, and the loss of its answers; stage 2's loss goes on beside it,
with more pictures than the model is asked about.
The last weights, averaged over steps, are written to RUN/bridge.safetensors.

With --tune BRIDGE there is stage 3 alone, from the weights of that bridge and without stage 2's
loss: it suits a bridge to another form of the language model, such as one of fewer bits.

How long a stage runs is given in minutes, and the learning rate follows the share of them used,
so that one command suits any machine; RUN/state.pt is written every few minutes, and a run that
was stopped goes on from there. On a CPU there is one single-threaded process per core.
"""

import argparse
import itertools
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

from data import read_names
from features import feature_file, read_scenes
from model import END, GGUF_NAME, Bridge, LanguageModel
from questions import NUMBERS, Asking, Question
from rows import AlignLoss, TargetRows
from scenes import Scene

QUESTIONS_PER_PICTURE = 8
ALIGN_WEIGHT_IN_STAGE_3 = 1.0
EXACT_SHARE_OF_STAGE_1 = 0.5
"""Stage 1 begins with exact rows and goes on with noisy ones."""
AVERAGING = 0.99
REPORT_SECONDS, SAVE_SECONDS = 40, 120
STAGES = {
    1: {"batch": 10, "asked": 10, "rate": 2e-3},
    2: {"batch": 64, "asked": 0, "rate": 1e-3},
    3: {"batch": 32, "asked": 10, "rate": 2e-4},
}
"""Pictures of a step, how many of them go through the language model, and the highest learning rate."""
TUNING = {"batch": 10, "asked": 10, "rate": 1e-4}
"""The same for stage 3 with --tune."""
PLAIN_SHARE = 0.15
"""Share of a batch that comes from the plain drawings rather than from the parts."""


@dataclass
class Options:
    """The command line; see main()."""

    data: Path
    checkpoint: Path
    out: Path
    stage1_minutes: float
    stage2_minutes: float
    stage3_minutes: float
    batch_scale: int
    without_style: str | None
    llm: Path | None
    tune: Path | None
    processes: int | None
    device: str


class Pictures:
    """Scenes and features of the plain drawings and of all finished parts."""

    def __init__(self, options: Options, names: set[str], generator: np.random.Generator):
        self.generator = generator
        self.folders = [options.data / "plain", *sorted(options.data.glob("part-*"))]
        self.folders = [folder for folder in self.folders if (folder / "scenes.jsonl").is_file()]
        self.scenes = [read_scenes(folder) for folder in self.folders]
        self.features = [feature_file(folder, len(scenes), "r") for folder, scenes in zip(self.folders, self.scenes)]
        left_out = f"{options.without_style}/"
        inside, outside = [], []
        for folder, scenes in enumerate(self.scenes):
            for row, scene in enumerate(scenes):
                if scene.items[0].name in names:
                    (outside if scene.items[0].file.startswith(left_out) else inside).append((folder, row))
        self.plain = [place for place in inside if place[0] == 0]
        self.parts = [place for place in inside if place[0] > 0]
        self.validation = [place for place in outside if place[0] == 0]

    def get(self, places: list[tuple[int, int]]) -> tuple[Tensor, list[Scene]]:
        """Features [batch, 257, 384] float32 and scenes."""
        features = np.stack([self.features[folder][row] for folder, row in places])
        return torch.from_numpy(features).float(), [self.scenes[folder][row] for folder, row in places]

    def _places(self, count: int) -> list[tuple[int, int]]:
        plain = self.generator.binomial(count, PLAIN_SHARE)
        places = [self.plain[n] for n in self.generator.integers(len(self.plain), size=plain)]
        places += [self.parts[n] for n in self.generator.integers(len(self.parts), size=count - plain)]
        self.generator.shuffle(places)
        return [tuple(place) for place in places]

    def random_scenes(self, count: int) -> list[Scene]:
        """The scenes of a random batch, without features."""
        return [self.scenes[folder][row] for folder, row in self._places(count)]

    def batch(self, count: int) -> tuple[Tensor, list[Scene]]:
        """A random batch, changed."""
        features, scenes = self.get(self._places(count))
        return self.changed(features), scenes

    def changed(self, features: Tensor) -> Tensor:
        """The same features of pictures without a random share of their patches, and with noise."""
        count, patches = len(features), features.shape[1] - 1
        kept = int(patches * self.generator.uniform(0.5, 1.0))
        order = torch.rand(count, patches).argsort(1)[:, :kept] + 1
        order = torch.cat([torch.zeros(count, 1, dtype=torch.long), order], 1)
        features = features.gather(1, order[:, :, None].expand(-1, -1, features.shape[2]))
        return features + 0.1 * torch.randn_like(features)


@dataclass
class Tally:
    """Means since the last report."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def report(self) -> str:
        text = " ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in self.values.items())
        self.values = {}
        return text


class Trainer:
    """One process of a run: model, optimizer, weight average, and the clock of the stages."""

    def __init__(self, options: Options, rank: int, processes: int):
        self.options, self.rank, self.processes = options, rank, processes
        self.device = torch.device(options.device)
        names, taken_for = read_names(options.data)
        torch.manual_seed(0)
        self.language_model = LanguageModel(options.llm or options.checkpoint / GGUF_NAME, self.device, torch.bfloat16)
        self.bridge = Bridge(self.language_model.embeddings.shape[1], dropout=0.0)
        self.bridge.match_scale(self.language_model.embeddings.float())
        self.bridge.to(self.device)
        self.rows = TargetRows(names, taken_for, self.language_model)
        if options.tune:
            self.bridge.load(options.tune)
        else:
            self._fit_features()
        self.averaged = {name: tensor.detach().clone() for name, tensor in self.bridge.state_dict().items()}
        self.stage, self.used_minutes, self.step = 3 if options.tune else 1, 0.0, 0
        self.optimizer = self._optimizer()
        self._load()
        torch.manual_seed(1 + rank + self.step)
        self.pictures = Pictures(options, {name.text for name in names}, np.random.default_rng([rank, self.step]))
        self.random = random.Random(rank * 1000 + self.step)
        self.asking = Asking(names, taken_for, self.random)
        self.tally = Tally()

    @torch.no_grad()
    def _fit_features(self) -> None:
        plain = self.options.data / "plain"
        features = feature_file(plain, len(read_scenes(plain)), "r")[::8]
        self.bridge.vision_model.post_layernorm.fit(torch.from_numpy(features.astype(np.float32)).to(self.device))

    def _trained(self) -> list[nn.Parameter]:
        """What the stage that runs trains."""
        module = self.rows if self.stage == 1 else self.bridge
        return [p for p in module.parameters() if p.requires_grad]

    def _optimizer(self) -> torch.optim.Optimizer:
        trained = self._trained()
        decayed = [p for p in trained if p.ndim == 2 and self.stage > 1]
        others = [p for p in trained if p.ndim != 2 or self.stage == 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)

    def minutes(self) -> float:
        """The length of the stage that runs."""
        options = self.options
        return (options.stage1_minutes, options.stage2_minutes, options.stage3_minutes)[self.stage - 1]

    def run(self) -> None:
        self.bridge.train()
        while self.stage in STAGES:
            if self.minutes() > 0:
                self._run_stage()
            self.stage, self.used_minutes, self.step = self.stage + 1, 0.0, 0
            self.optimizer = self._optimizer()
            self._save()
        if self.rank == 0:
            self.bridge.load_state_dict(self.averaged)
            self.bridge.save(self.options.out / "bridge.safetensors")

    def _run_stage(self) -> None:
        if self.stage > 1 and not self.options.tune:
            self.align = AlignLoss(self.rows, self.pictures.random_scenes(500))
        start = time.monotonic() - 60 * self.used_minutes
        reported = saved = time.monotonic()
        pictures = 0
        share = self.used_minutes / self.minutes()
        sizes = TUNING if self.options.tune else STAGES[self.stage]
        while share < 1:
            rate = sizes["rate"] * min(1.0, share / 0.03 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * share)) + 1e-6
            batch, asked = (self.options.batch_scale * sizes[key] // self.processes for key in ("batch", "asked"))
            share = self._one_step(batch, asked, rate, (time.monotonic() - start) / 60 / self.minutes())
            pictures += batch * self.processes
            now = time.monotonic()
            self.used_minutes = share * self.minutes()
            if self.rank == 0 and now - reported > REPORT_SECONDS:
                speed = pictures / (now - reported)
                print(f"stage {self.stage} {self.used_minutes:5.1f} min {speed:5.1f} pictures/s step {self.step} {self.tally.report()}{self._validate()}", flush=True)
                reported, pictures = now, 0
            if now - saved > SAVE_SECONDS:
                self._save()
                saved = now

    def _one_step(self, batch: int, asked: int, rate: float, share: float) -> float:
        """One update on `batch` pictures, the first `asked` of them through the language model;
        returns the share of the stage used, the mean over the processes."""
        if self.stage == 1:
            scenes = self.pictures.random_scenes(batch)
            soft = self.rows(scenes, self.random if share > EXACT_SHARE_OF_STAGE_1 else None)
            loss = 0.0
        else:
            features, scenes = self.pictures.batch(batch)
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                soft = self.bridge(features.to(self.device))
            loss = 0.0
            if not self.options.tune:
                align_loss, parts = self.align(soft, scenes)
                self.tally.add(**parts)
                loss = align_loss if self.stage == 2 else ALIGN_WEIGHT_IN_STAGE_3 * align_loss
        if asked:
            questions = [self.asking.questions(scene, QUESTIONS_PER_PICTURE) for scene in scenes[:asked]]
            answer_loss, likeliest = self.language_model.loss(soft[:asked], self.language_model.pack(questions))
            self._tally_answers(questions, likeliest)
            loss = loss + answer_loss
            self.tally.add(answers=answer_loss.item())
        loss.backward()
        share = self._average_gradients(share)
        norm = nn.utils.clip_grad_norm_(self._trained(), 1.0)
        self.tally.add(gradient=norm.item())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        keep = min(AVERAGING, 1 - 1 / self.step)
        if self.stage > 1:
            for name, tensor in self.bridge.state_dict().items():
                self.averaged[name].lerp_(tensor.detach(), 1 - keep)
        return share

    def _tally_answers(self, questions: list[list[Question]], likeliest: Tensor) -> None:
        """Count the answers of which every token was the likeliest, by kind of answer."""
        start, right = 0, likeliest.tolist()
        for _, answer in itertools.chain.from_iterable(questions):
            end = start + len(self.language_model.encode(answer + END))
            kind = {"yes": "yes/no", "no": "yes/no", "left": "side", "right": "side"}.get(answer, "name")
            self.tally.add(**{"number" if answer in NUMBERS else kind: float(all(right[start:end]))})
            start = end

    def _average_gradients(self, share: float) -> float:
        """Average gradients over the processes, and with them the clock, so that all take the same steps."""
        if self.processes == 1:
            return share
        gradients = [p.grad for p in self._trained() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor([share])])
        dist.all_reduce(flat)
        flat /= self.processes
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        return flat[-1].item()

    @torch.no_grad()
    def _validate(self) -> str:
        """With --without-style: how often the first slot holds the right name, on that style's drawings."""
        if self.stage == 1 or self.options.tune or not self.pictures.validation:
            return ""
        self.bridge.eval()
        right = 0
        for start in range(0, len(self.pictures.validation), 64):
            features, scenes = self.pictures.get(self.pictures.validation[start : start + 64])
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                soft = self.bridge(features.to(self.device))
            found = self.align.name_logits(soft, [1] * len(scenes))[:, 0].argmax(1).tolist()
            right += sum(self.rows.number[scene.items[0].name] == n for n, scene in zip(found, scenes))
        self.bridge.train()
        return f" | left-out style {right / len(self.pictures.validation):.3f}"

    def _save(self) -> None:
        if self.rank != 0:
            return
        state = {
            "bridge": self.bridge.state_dict(),
            "averaged": self.averaged,
            "rows": self.rows.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stage": self.stage,
            "used_minutes": self.used_minutes,
            "step": self.step,
        }
        partial = self.options.out / "state.partial"
        torch.save(state, partial)
        partial.replace(self.options.out / "state.pt")

    def _load(self) -> None:
        path = self.options.out / "state.pt"
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.device)
        self.bridge.load_state_dict(state["bridge"])
        self.averaged = state["averaged"]
        self.rows.load_state_dict(state["rows"])
        self.stage, self.used_minutes, self.step = state["stage"], state["used_minutes"], state["step"]
        self.optimizer = self._optimizer()
        self.optimizer.load_state_dict(state["optimizer"])


def work(rank: int, processes: int, options: Options) -> None:
    """Run one process of the training."""
    if processes > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{(options.out / 'rendezvous').absolute()}", rank=rank, world_size=processes)
    Trainer(options, rank, processes).run()
    if processes > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what data.py made")
    parser.add_argument("--checkpoint", type=Path, required=True, help="what demo/make_checkpoint.py wrote: its GGUF is used")
    parser.add_argument("--out", type=Path, required=True, help="directory for the state and the weights")
    parser.add_argument("--stage1-minutes", type=float, default=18)
    parser.add_argument("--stage2-minutes", type=float, default=45)
    parser.add_argument("--stage3-minutes", type=float, default=40)
    parser.add_argument("--batch-scale", type=int, default=1, help="multiply the batches, for a GPU")
    parser.add_argument("--without-style", help="leave this training style out and report on it, to choose settings by")
    parser.add_argument("--llm", type=Path, help="another GGUF of the same language model, such as a bundle's llm.gguf")
    parser.add_argument("--tune", type=Path, metavar="BRIDGE", help="stage 3 alone, from this bridge")
    parser.add_argument("--processes", type=int, help="processes on a CPU; one per core where it is not given")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    options = Options(**vars(parser.parse_args()))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rendezvous").unlink(missing_ok=True)
    processes = (options.processes or torch.get_num_threads()) if options.device == "cpu" else 1
    if processes == 1:
        if options.processes:
            torch.set_num_threads(1)
        work(0, 1, options)
    else:
        multiprocessing.spawn(work, (processes, options), nprocs=processes)


if __name__ == "__main__":
    main()
