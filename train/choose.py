"""Which names to keep: those whose drawings agree across the training styles.

Styles of one house look alike, so a whole family is left out at a time: a kernel ridge classifier
on pooled vision features of the other families names the drawings of the one left out. Names are
dropped, the worst first, until the wanted number is left. The held-out style plays no part.
"""

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FAMILY = {
    "fluent-emoji": "fluent",
    "fluent-emoji-flat": "fluent",
    "fluent-emoji-3d": "fluent",
    "noto": "noto",
    "noto-v1": "noto",
}
LEAST_FAMILIES = 2
STEP = 12
KERNEL_SHARPNESS = 3.0
RIDGE = 0.1


def pool(features: np.ndarray) -> Tensor:
    """[pictures, tokens, width] to [pictures, 3 * width]: class token, mean and maximum over patches."""
    rows = []
    for one in features:
        hidden = torch.from_numpy(np.asarray(one, dtype=np.float32))
        rows.append(torch.cat([hidden[0], hidden[1:].mean(0), hidden[1:].amax(0)]))
    return torch.stack(rows)


def _left_out(pooled: Tensor, labels: Tensor, families: np.ndarray, count: int) -> Tensor:
    """Scores [pictures, count] of each picture by a classifier that never saw its family."""
    scores = torch.zeros(len(pooled), count)
    for family in sorted(set(families)):
        seen = torch.from_numpy(families != family)
        mean, deviation = pooled[seen].mean(0), pooled[seen].std(0) + 1e-6
        direction = F.normalize((pooled - mean) / deviation, dim=1)
        kernel = torch.exp(KERNEL_SHARPNESS * (direction @ direction[seen].T - 1))
        wanted = F.one_hot(labels[seen], count).float()
        weights = torch.linalg.solve(kernel[seen] + RIDGE * torch.eye(len(wanted)), wanted)
        scores[~seen] = kernel[~seen] @ weights
    return scores


def choose(pooled: Tensor, names: list[str], styles: list[str], count: int, kept: set[str]) -> tuple[list[str], dict[str, list[str]], float]:
    """`count` names (those in `kept` always among them), for each the five it is taken for most, and the accuracy left out.

    `names` and `styles` are those of the drawings whose features `pooled` holds."""
    families = np.array([FAMILY.get(style, style) for style in styles])
    drawn = defaultdict(set)
    for name, family in zip(names, families):
        drawn[name].add(family)
    left = sorted(name for name in drawn if len(drawn[name]) >= LEAST_FAMILIES)
    while True:
        member = np.isin(names, left)
        number = {name: n for n, name in enumerate(left)}
        labels = torch.tensor([number[name] for name, inside in zip(names, member) if inside])
        scores = _left_out(pooled[torch.from_numpy(member)], labels, families[member], len(left))
        right = (scores.argmax(1) == labels).float()
        accuracy = torch.zeros(len(left)).index_add_(0, labels, right) / torch.bincount(labels, minlength=len(left))
        if len(left) <= count:
            return left, _taken_for(scores, labels, left), right.mean().item()
        # A name that is right by a hair goes before one that is right by far.
        margin = scores.gather(1, labels[:, None])[:, 0] - scores.scatter(1, labels[:, None], -9.0).amax(1)
        merit = accuracy + 0.1 * torch.zeros(len(left)).index_add_(0, labels, margin) / torch.bincount(labels, minlength=len(left))
        droppable = [n for n in merit.argsort().tolist() if left[n] not in kept]
        dropped = set(droppable[: min(STEP, len(left) - count)])
        left = [name for n, name in enumerate(left) if n not in dropped]


def _taken_for(scores: Tensor, labels: Tensor, names: list[str]) -> dict[str, list[str]]:
    confusion = torch.zeros(len(names), len(names)).index_add_(0, labels, scores)
    confusion.fill_diagonal_(-torch.inf)
    return {name: [names[m] for m in confusion[n].topk(5).indices.tolist()] for n, name in enumerate(names)}
