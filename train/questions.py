"""Questions about a scene, with the short answers the model is trained to give.

Answers are lower case without a full stop: a name with its article, "yes", "no", a number word,
"left" or "right", a category.
"""

import random
from collections.abc import Callable

from names import Name, article
from scenes import Scene

NUMBERS = ("one", "two", "three", "four")

CATEGORIES = {
    "animal": "an animal",
    "plant": "a plant",
    "food": "food",
    "drink": "a drink",
    "vehicle": "a vehicle",
    "clothing": "clothing",
    "instrument": "a musical instrument",
}

WHAT = (
    "What is this?",
    "What is in the picture?",
    "What do you see?",
    "What does the picture show?",
    "What is shown here?",
    "Name the thing in the picture.",
    "What's this?",
    "What is in this image?",
    "Describe the picture.",
    "What can be seen in the image?",
)
IS_KIND = ("Is this {}?", "Is it {}?", "Is {} in the picture?", "Is this picture of {}?")
IS_THERE = (
    "Is there {} in the picture?",
    "Is there {}?",
    "Is this {}?",
    "Do you see {}?",
    "Does the picture show {}?",
    "Can you see {} here?",
)
CATEGORY = ("What kind of thing is this?", "Which category is this?", "What category does it belong to?")
HOW_MANY = (
    "How many things are there?",
    "How many things are in the picture?",
    "How many objects do you see?",
    "How many drawings are there?",
    "Count the things in the picture.",
)
HOW_MANY_OF = ("How many {} are there?", "How many {} do you see?", "How many {} are in the picture?")
WHAT_SIDE = (
    "What is on the {}?",
    "What do you see on the {}?",
    "Which thing is on the {}?",
    "What is on the {} side?",
    "Name the thing on the {}.",
)
WHICH_SIDE = (
    "Is the {} on the left or on the right?",
    "On which side is the {}?",
    "Where is the {}, left or right?",
    "Is the {} on the left or the right?",
)

Question = tuple[str, str]
Asker = Callable[["Asking", Scene], Question]


def plural(name: str) -> str | None:
    """The plural of a name, or None where there is none that a person would use."""
    if not article(name).startswith(("a ", "an ")):
        return None
    irregular = {"mouse": "mice", "tooth": "teeth", "goose": "geese", "knife": "knives", "leaf": "leaves", "wolf": "wolves",
                 "maple leaf": "maple leaves", "fish": "fish", "sheep": "sheep", "deer": "deer", "shrimp": "shrimp", "squid": "squid",
                 "tropical fish": "tropical fish", "computer mouse": "computer mice", "moose": "moose", "bison": "bison"}  # fmt: skip
    if name in irregular:
        return irregular[name]
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


class Asking:
    """Draws questions about scenes; `distractors` gives, for a name, names it is easily taken for."""

    def __init__(self, names: list[Name], distractors: dict[str, list[str]], rng: random.Random):
        self.names = {name.text: name for name in names}
        self.all_names = sorted(self.names)
        self.distractors = distractors
        self.rng = rng

    def questions(self, scene: Scene, count: int) -> list[Question]:
        """`count` questions that suit the scene; the kinds vary, and one kind may come twice."""
        return [self._one(scene) for _ in range(count)]

    def _one(self, scene: Scene) -> Question:
        kinds, weights = zip(*MENU[scene.layout])
        while True:
            (ask,) = self.rng.choices(kinds, weights)
            question = ask(self, scene)
            if question is not None:
                return question

    def absent_name(self, scene: Scene) -> str:
        """A name that is not in the scene: half the time one that looks like one that is."""
        present = set(scene.names)
        while True:
            if self.rng.random() < 0.5:
                name = self.rng.choice(self.distractors[self.rng.choice(scene.names)])
            else:
                name = self.rng.choice(self.all_names)
            if name not in present:
                return name

    def _wording(self, templates: tuple[str, ...] | list[str]) -> str:
        """The first wording half the time, otherwise any of them."""
        return templates[0] if self.rng.random() < 0.5 else self.rng.choice(templates)

    def what(self, scene: Scene) -> Question:
        return self._wording(WHAT), " and ".join(article(name) for name in scene.names)

    def is_kind(self, scene: Scene) -> Question | None:
        category = self.rng.choice(("animal", "plant", "food"))
        truth = self.names[scene.names[0]].is_a(category)
        if truth is None or (not truth and self.rng.random() < 0.5):
            return None
        return self._wording(IS_KIND).format(CATEGORIES[category]), "yes" if truth else "no"

    def category(self, scene: Scene) -> Question | None:
        kind = self.names[scene.names[0]].kind
        return (self._wording(CATEGORY), CATEGORIES[kind]) if kind in CATEGORIES else None

    def is_there(self, scene: Scene) -> Question:
        truth = self.rng.random() < 0.5
        name = self.rng.choice(scene.names) if truth else self.absent_name(scene)
        templates = IS_THERE if scene.layout == "single" else [t for t in IS_THERE if not t.startswith("Is this")]
        return self._wording(templates).format(article(name)), "yes" if truth else "no"

    def how_many(self, scene: Scene) -> Question:
        return self._wording(HOW_MANY), NUMBERS[len(scene.items) - 1]

    def how_many_of(self, scene: Scene) -> Question | None:
        name = self.rng.choice(scene.names)
        many = plural(name)
        if many is None:
            return None
        return self._wording(HOW_MANY_OF).format(many), NUMBERS[scene.names.count(name) - 1]

    def what_side(self, scene: Scene) -> Question:
        side = self.rng.choice(("left", "right"))
        return self._wording(WHAT_SIDE).format(side), article(scene.names[0 if side == "left" else 1])

    def which_side(self, scene: Scene) -> Question:
        side = self.rng.choice(("left", "right"))
        return self._wording(WHICH_SIDE).format(scene.names[0 if side == "left" else 1]), side


MENU: dict[str, list[tuple[Asker, float]]] = {
    "single": [(Asking.what, 3), (Asking.is_there, 4), (Asking.is_kind, 2.5), (Asking.how_many, 1), (Asking.category, 0.5)],
    "pair": [(Asking.what_side, 3), (Asking.which_side, 4), (Asking.is_there, 2), (Asking.what, 0.5), (Asking.how_many, 0.5)],
    "group": [(Asking.how_many, 3), (Asking.is_there, 2), (Asking.how_many_of, 0.7)],
}
"""What is asked of each layout, and how often."""
