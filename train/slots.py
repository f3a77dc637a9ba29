"""Stage 1: soft rows that spell, in token embeddings, what is in the picture.

Row 0 is the number of things; then come four slots of NAME_ROWS rows for a name and one for its
kind: the thing itself, or left and right, or the members of a group in any order. The rows after
the slots are free. A language model reads its own token embeddings most easily, and every row has
a target of its own, so this trains the Q-Former some ten times faster than through the model.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import LanguageModel
from names import Name
from questions import NUMBERS
from scenes import Scene

SLOTS, NAME_ROWS = 4, 3
SLOT_ROWS = NAME_ROWS + 1
PADDING = ","
KIND_WORDS = {"other": "thing"}
SHARPNESS = 16.0


class SlotLoss(nn.Module):
    """Cosine logits of the slot rows against name and token embeddings; nothing here is trained."""

    def __init__(self, names: list[Name], language_model: LanguageModel):
        super().__init__()
        self.names = [name.text for name in names]
        self.kinds = {name.text: " " + KIND_WORDS.get(name.kind, name.kind) for name in names}
        encode = language_model.encode
        padding = encode(PADDING)[0]
        spelled = [(encode(" " + name) + [padding] * NAME_ROWS)[:NAME_ROWS] for name in self.names]
        words = {word: encode(word)[0] for word in [*self.kinds.values(), *(f" {number}" for number in NUMBERS)]}
        tokens = sorted({token for ids in spelled for token in ids} | set(words.values()) | {padding})
        self.index = {token: n for n, token in enumerate(tokens)}
        self.name_number = {name: n for n, name in enumerate(self.names)}
        self.words = {word: self.index[token] for word, token in words.items()}
        self.padding = self.index[padding]
        table = language_model.embeddings[torch.tensor(tokens, device=language_model.device)].float()
        self.register_buffer("table", table)
        self.register_buffer("directions", F.normalize(table, dim=1))
        self.register_buffer("spelling", torch.tensor([[self.index[t] for t in ids] for ids in spelled], device=table.device))

    def token_logits(self, soft: Tensor) -> Tensor:
        """Soft rows [batch, QUERIES, width] to [batch, 1 + SLOTS * SLOT_ROWS, tokens]."""
        rows = soft[:, : 1 + SLOTS * SLOT_ROWS].float()
        return SHARPNESS * F.normalize(rows, dim=2) @ self.directions.T

    def name_logits(self, token_logits: Tensor) -> Tensor:
        """[batch, SLOTS, names]: how well each slot spells each name."""
        slots = token_logits[:, 1:].unflatten(1, (SLOTS, SLOT_ROWS))[:, :, :NAME_ROWS]
        return sum(slots[:, :, row, self.spelling[:, row]] for row in range(NAME_ROWS))

    def targets(self, scene: Scene) -> tuple[list[int], list[int]]:
        """Token of each row (-100 where any will do), and the names of the slots in order.

        A group of different things has no order: its names are returned and its rows left open."""
        names = scene.names
        listed = names[:1] if len(set(names)) == 1 else names
        rows = [self.words[f" {NUMBERS[len(names) - 1]}"]]
        if scene.layout == "group" and len(listed) > 1:
            return rows + [-100] * (SLOTS * SLOT_ROWS), [self.name_number[name] for name in listed]
        for name in listed:
            rows += [*self.spelling[self.name_number[name]].tolist(), self.words[self.kinds[name]]]
        rows += [self.padding] * (SLOT_ROWS * (SLOTS - len(listed)))
        return rows, [self.name_number[name] for name in listed]

    def forward(self, soft: Tensor, scenes: list[Scene]) -> Tensor:
        """Token loss on every row with a target, name loss on every slot, and a pull to the embeddings' own size."""
        targets = [self.targets(scene) for scene in scenes]
        rows = torch.tensor([row for row, _ in targets], device=soft.device)
        logits = self.token_logits(soft)
        names = F.log_softmax(self.name_logits(logits), dim=2)
        token_loss = F.cross_entropy(logits.flatten(0, 1), rows.flatten(), label_smoothing=0.05)
        known = rows >= 0
        wanted = self.table[rows[known]]
        size_loss = F.mse_loss(soft[:, : rows.shape[1]].float()[known], wanted) / self.table.var()
        name_losses = []
        for n, (scene, (_, numbers)) in enumerate(zip(scenes, targets)):
            if scene.layout == "group" and len(numbers) > 1:
                name_losses += [-torch.logsumexp(names[n, :, number], 0) for number in set(numbers)]
            else:
                name_losses += [-names[n, slot, number] for slot, number in enumerate(numbers)]
        self.parts = {"token": token_loss.item(), "name": torch.stack(name_losses).mean().item(), "size": size_loss.item()}
        return token_loss + torch.stack(name_losses).mean() + 0.2 * size_loss
