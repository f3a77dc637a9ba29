"""Stage 1 and 2: what the soft rows should be.

A small frozen language model cannot tell from "a dog on the left, a cup on the right" whether there
is a cup: asked so in plain text, SmolLM2-135M answers at chance. But there are rows that make it
answer. `TargetRows` makes them from the truth about a scene, and stage 1 learns how, through the
language model and without a picture. Stage 2 teaches the Q-Former to write them from a picture
(`AlignLoss`), without the language model; every row has a target of its own there, so a step costs
a tenth or less of one through the model.

Row 0 is the number of things; then come four slots of NAME_ROWS rows for a name and one for its
kind, things from left to right; the rest are the same for every picture.
"""

import itertools
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import QUERIES, LanguageModel
from names import Name
from questions import NUMBERS
from scenes import Scene

SLOTS, NAME_ROWS = 4, 3
THING_ROWS = NAME_ROWS + 1
PADDING = ","
KIND_WORDS = {"other": "thing"}
SHARPNESS = 20.0
ROW_WEIGHT = 4.0
ROW_TOLERANCE = 0.3
"""Error of a row that never varies that is not worth much, in deviations of a token embedding's values."""
NOISE = 0.3
"""Deviation of the noise on stage 1's rows, in deviations of a token embedding's values."""


class TargetRows(nn.Module):
    """Soft rows made from the truth: a thing's rows (from its name and kind) plus rows of its place.

    A name's rows are a linear map of its token embeddings, the same map for all names: what is
    learned for one holds for all. They start as the embeddings themselves."""

    def __init__(self, names: list[Name], taken_for: dict[str, list[str]], language_model: LanguageModel):
        super().__init__()
        table = language_model.embeddings.float()
        self.width = table.shape[1]
        self.scale = table.std().item()
        encode = language_model.encode
        padding = encode(PADDING)[0]
        kinds = sorted({name.kind for name in names})
        tokens = [(encode(" " + n.text) + [padding] * NAME_ROWS)[:NAME_ROWS] + encode(" " + KIND_WORDS.get(n.kind, n.kind))[:1] for n in names]
        self.number = {name.text: n for n, name in enumerate(names)}
        self.taken_for = [[self.number[other] for other in taken_for[name.text] if other in self.number] for name in names]
        device = table.device
        self.register_buffer("spelled", table[torch.tensor(tokens, device=device)], persistent=False)
        self.register_buffer("kind", torch.tensor([kinds.index(name.kind) for name in names], device=device), persistent=False)
        self.name_map = nn.Parameter(torch.eye(self.width, device=device).repeat(THING_ROWS, 1, 1))
        self.kind_rows = nn.Parameter(torch.zeros(len(kinds), THING_ROWS, self.width, device=device))
        self.place_rows = nn.Parameter(torch.zeros(SLOTS, SLOTS, THING_ROWS, self.width, device=device))
        self.empty_rows = nn.Parameter(table[padding].repeat(SLOTS, THING_ROWS, 1))
        self.count_rows = nn.Parameter(table[torch.tensor([encode(f" {number}")[0] for number in NUMBERS], device=device)].clone())
        free = QUERIES - 1 - SLOTS * THING_ROWS
        self.free_rows = nn.Parameter(table[torch.randint(len(table), (free,), generator=torch.Generator().manual_seed(0))].clone())

    def things(self) -> Tensor:
        """[names, THING_ROWS, width]: each name's rows, wherever the thing stands."""
        return torch.einsum("nrw,rwv->nrv", self.spelled, self.name_map) + self.kind_rows[self.kind]

    def assemble(self, things: list[Tensor]) -> Tensor:
        """[scenes, QUERIES, width] from the things of each scene [count, THING_ROWS, width], in their places."""
        rows = []
        for thing in things:
            count = len(thing)
            placed = torch.cat([thing + self.place_rows[count - 1, :count], self.empty_rows[count:]])
            rows.append(torch.cat([self.count_rows[count - 1][None], placed.flatten(0, 1), self.free_rows]))
        return torch.stack(rows)

    def forward(self, scenes: list[Scene], rng: random.Random | None = None) -> Tensor:
        """Rows of scenes. With `rng` they are as unsure as a Q-Former's: noise is added, and half the
        things are mixed with others, those they are taken for above all."""
        table = self.things()
        things = []
        for scene in scenes:
            numbers = [self.number[name] for name in scene.names]
            thing = table[numbers]
            if rng is not None:
                others = [self._other(number, rng) for number in numbers]
                share = torch.tensor([rng.uniform(0.0, 0.45) if rng.random() < 0.5 else 0.0 for _ in numbers], device=table.device)
                thing = thing.lerp(table[others], share[:, None, None])
            things.append(thing)
        rows = self.assemble(things)
        return rows if rng is None else rows + NOISE * self.scale * torch.randn_like(rows)

    def _other(self, number: int, rng: random.Random) -> int:
        taken_for = self.taken_for[number]
        return rng.choice(taken_for) if taken_for and rng.random() < 0.7 else rng.randrange(len(self.spelled))


class AlignLoss:
    """Stage 2's loss: the Q-Former's rows against the target rows, which stay as they are."""

    @torch.no_grad()
    def __init__(self, target: TargetRows, scenes: list[Scene]):
        """`scenes` are typical ones, to measure how much each row varies."""
        self.target = target
        self.things = target.things().flatten(1)
        self.centre = self.things.mean(0)
        self.directions = F.normalize(self.things - self.centre, dim=1)
        # The model reads small differences in rows that vary little or not at all, so a row's
        # error counts by its own variance.
        variance = target(scenes).var(0).mean(1)
        self.row_weights = 1 / (variance + (ROW_TOLERANCE * target.scale) ** 2)

    def name_logits(self, soft: Tensor, counts: list[int]) -> Tensor:
        """Soft rows [batch, QUERIES, width] and things in each picture to [batch, SLOTS, names]: how
        well each slot's rows, less those of its place, agree with each name's."""
        slots = soft[:, 1 : 1 + SLOTS * THING_ROWS].float().unflatten(1, (SLOTS, THING_ROWS))
        places = self.target.place_rows[torch.tensor(counts) - 1].detach()
        found = (slots - places).flatten(2) - self.centre
        return SHARPNESS * F.normalize(found, dim=2) @ self.directions.T

    def __call__(self, soft: Tensor, scenes: list[Scene]) -> tuple[Tensor, dict[str, float]]:
        """The loss, and its parts: cross-entropy of the slots' names, and squared distance of the
        rows from their targets, in units of each row's variance.

        The order of a group's things is the one that suits best."""
        numbers = [[self.target.number[name] for name in scene.names] for scene in scenes]
        scores = F.log_softmax(self.name_logits(soft, [len(n) for n in numbers]), dim=2)
        name_losses = []
        for n, scene in enumerate(scenes):
            if scene.layout == "group":
                numbers[n] = self._best_order(scores[n].detach(), numbers[n])
            name_losses.append(-scores[n, range(len(numbers[n])), numbers[n]].mean())
        name_loss = torch.stack(name_losses).mean()
        things = self.things.unflatten(1, (THING_ROWS, -1))
        with torch.no_grad():
            wanted = self.target.assemble([things[n] for n in numbers])
        row_loss = ((soft.float() - wanted).square().mean((0, 2)) * self.row_weights).mean()
        return name_loss + ROW_WEIGHT * row_loss, {"slot_loss": name_loss.item(), "row_loss": row_loss.item()}

    @staticmethod
    def _best_order(scores: Tensor, numbers: list[int]) -> list[int]:
        orders = list(set(itertools.permutations(numbers)))
        totals = torch.stack([scores[range(len(order)), order].sum() for order in orders])
        return list(orders[totals.argmax().item()])
