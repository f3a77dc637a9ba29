"""Captions of scenes, what they are spelled with, and captions that are wrong by little."""

import random
from pathlib import Path

from names import Name, article
from questions import NUMBERS, plural
from scenes import Scene

OPENINGS = ("", "a picture of ", "a drawing of ", "a photo of ", "an image of ")
"""What may stand before a caption; nothing most of the time."""
OPENING_SHARE, SIDES_SHARE = 0.2, 0.15
"""Share of captions that something stands before, and of those of pairs that say what is where."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""[DEC], with which captions begin, comes behind all words: readers of a vocab.txt add it."""


def vocabulary(names: list[Name]) -> list[str]:
    """BERT's special tokens and every word that captions are made of. Other words become [UNK]."""
    texts = [text for name in names for text in (article(name.text), plural(name.text) or "")]
    texts += [*OPENINGS, *NUMBERS, "on the left", "on the right", "and ,", "the a an there is are"]
    return [*SPECIAL, *sorted({word for text in texts for word in words(text)})]


def words(text: str) -> list[str]:
    """As BERT's basic tokenizer parts these texts: lower case, punctuation alone."""
    return "".join(c if c.isalnum() or c.isspace() else f" {c} " for c in text.lower()).split()


def write_vocabulary(path: Path, names: list[Name]) -> None:
    path.write_text("\n".join(vocabulary(names)) + "\n", encoding="utf-8")


class Captioning:
    """Draws captions, true and false ones; `taken_for` gives the names that a name is easily taken for."""

    def __init__(self, names: list[Name], taken_for: dict[str, list[str]], rng: random.Random):
        self.all_names = sorted(name.text for name in names)
        self.taken_for = taken_for
        self.rng = rng

    def true(self, scene: Scene) -> str:
        """A caption of the scene."""
        return self._caption(scene.names, scene.layout)

    def false(self, scene: Scene) -> str:
        """A caption that one detail makes wrong: a name, the number of things, or which is on which side."""
        names = scene.names
        kind = self.rng.choice(("name", "name", "number", "sides") if len(names) > 1 else ("name",))
        if kind == "sides" and scene.layout == "pair" and names[0] != names[1]:
            return self._opened(sides(names[::-1]))
        if kind == "number" and len(set(names)) == 1 and plural(names[0]):
            wrong = self.rng.choice([n for n in range(1, 5) if n != len(names)])
            return self._opened(plain([names[0]] * wrong))
        return self._caption(self._renamed(names), scene.layout)

    def _renamed(self, names: list[str]) -> list[str]:
        """One of the names in the place of another, the same everywhere."""
        wrong = self.rng.choice(names)
        while True:
            near = self.taken_for[wrong] if self.rng.random() < 0.5 else self.all_names
            other = self.rng.choice(near)
            if other not in names:
                return [other if name == wrong else name for name in names]

    def _caption(self, names: list[str], layout: str) -> str:
        by_side = layout == "pair" and self.rng.random() < SIDES_SHARE
        return self._opened(sides(names) if by_side else plain(names))

    def _opened(self, caption: str) -> str:
        return (self.rng.choice(OPENINGS) if self.rng.random() < OPENING_SHARE else "") + caption


def plain(names: list[str]) -> str:
    """What there is, from left to right: "a dog", "three dogs", "a dog, a cup and a cat"."""
    if len(names) > 1 and len(set(names)) == 1 and (many := plural(names[0])):
        return f"{NUMBERS[len(names) - 1]} {many}"
    things = [article(name) for name in dict.fromkeys(names)]
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


def sides(names: list[str]) -> str:
    """What is where, of two things."""
    return f"{article(names[0])} on the left and {article(names[1])} on the right"
