"""Scenes of the nano world: what can be in a picture, what is asked about it and what is answered.

A scene holds a few things. Within one scene no two things share a shape, a colour or a cell, so that "the red thing",
"the circle" and every question built on them have exactly one answer. Everything is drawn from the ``random.Random``
that the caller passes: the same state gives the same scene and the same question.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "dinosaur")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SIZES = ("small", "big")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
NUMBERS = ("zero", "one", "two", "three", "four")
BACKGROUNDS = 6
"""How many pale backgrounds there are; ``Scene.background`` is an index into them."""

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    (color, SHAPES[2 * index % len(SHAPES)]) for index, color in enumerate(COLORS)
)
"""The (colour, shape) pairs kept out of training pictures: one for each colour, every shape at least once."""

SHORT_TYPES = (
    "color_of_shape",
    "shape_of_color",
    "size_of_shape",
    "size_of_color",
    "position_of_shape",
    "position_of_color",
    "count",
    "yesno",
)
"""Question types with an answer of one or two words."""

QUESTION_TYPES = (*SHORT_TYPES, "describe")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "color_of_shape": (
        "what color is the {shape}?",
        "what colour does the {shape} have?",
        "which color is the {shape}?",
        "what is the color of the {shape}?",
    ),
    "shape_of_color": (
        "what shape is the {color} thing?",
        "what shape is {color}?",
        "what is the {color} thing?",
        "which shape does the {color} one have?",
    ),
    "size_of_shape": ("what size is the {shape}?", "how big is the {shape}?", "is the {shape} small or big?"),
    "size_of_color": (
        "what size is the {color} thing?",
        "how big is the {color} one?",
        "is the {color} thing small or big?",
    ),
    "position_of_shape": ("where is the {shape}?", "in which place is the {shape}?", "where do you see the {shape}?"),
    "position_of_color": (
        "where is the {color} thing?",
        "in which place is the {color} one?",
        "where do you see the {color} thing?",
    ),
    "count": ("how many things are there?", "how many objects do you see?", "count the things."),
    "yesno": (
        "is there {article} {color} {shape}?",
        "do you see {article} {color} {shape}?",
        "can you see {article} {color} {shape}?",
    ),
    "describe": ("what is in this picture?", "describe the picture.", "what do you see?"),
}
"""The phrasings of each question type."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape in one of the nine cells."""

    shape: str
    color: str
    size: str
    row: int
    column: int

    @property
    def position(self) -> str:
        """The cell in two words, for example ``top left`` or ``middle center``."""
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"

    @property
    def pair(self) -> tuple[str, str]:
        """Colour and shape, as listed in ``HELD_OUT``."""
        return self.color, self.shape


@dataclass(frozen=True, slots=True)
class Scene:
    """A few things, in reading order, on one of the pale backgrounds."""

    things: tuple[Thing, ...]
    background: int = 0

    @property
    def has_held_out(self) -> bool:
        """Whether a pair that training pictures never show occurs."""
        return any(thing.pair in HELD_OUT for thing in self.things)


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene and its only right answer."""

    type: str
    text: str
    answer: str


def sample_scene(rng: random.Random, minimum: int = 1, maximum: int = 3, held_out: bool | None = None) -> Scene:
    """Draw a scene of ``minimum`` to ``maximum`` things (five at most, as there are five shapes).

    ``held_out`` False: no pair of ``HELD_OUT`` occurs; True: at least one does; None: any.
    """
    number = rng.randint(minimum, maximum)
    while True:
        shapes = rng.sample(SHAPES, number)
        colors = rng.sample(COLORS, number)
        found = any(pair in HELD_OUT for pair in zip(colors, shapes, strict=True))
        if held_out is None or found == held_out:
            break
    cells = sorted(rng.sample(range(len(ROWS) * len(COLUMNS)), number))
    things = tuple(
        Thing(shape, color, rng.choice(SIZES), *divmod(cell, len(COLUMNS)))
        for shape, color, cell in zip(shapes, colors, cells, strict=True)
    )
    return Scene(things, rng.randrange(BACKGROUNDS))


def article(word: str) -> str:
    """``a`` or ``an``."""
    return "an" if word[0] in "aeiou" else "a"


def phrase(thing: Thing) -> str:
    """A thing in words, for example ``a big green dinosaur at the middle center``."""
    return f"{article(thing.size)} {thing.size} {thing.color} {thing.shape} at the {thing.position}"


def caption(scene: Scene) -> str:
    """The whole scene as one sentence, in reading order; also the answer to ``describe`` questions."""
    return " and ".join(phrase(thing) for thing in scene.things) + "."


def ask(scene: Scene, rng: random.Random, type: str) -> Question:
    """Draw a question of one of ``QUESTION_TYPES`` about a scene that has at least one thing."""
    template = rng.choice(TEMPLATES[type])
    thing = rng.choice(scene.things)
    color, shape = thing.color, thing.shape
    if type == "yesno":
        color, shape, answer = _ask_pair(scene, rng)
    else:
        answer = ANSWERS[type](scene, thing)
    text = template.format(color=color, shape=shape, article=article(color))
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    return Question(type, text, answer)


ANSWERS: dict[str, Callable[[Scene, Thing], str]] = {
    "color_of_shape": lambda scene, thing: thing.color,
    "shape_of_color": lambda scene, thing: thing.shape,
    "size_of_shape": lambda scene, thing: thing.size,
    "size_of_color": lambda scene, thing: thing.size,
    "position_of_shape": lambda scene, thing: thing.position,
    "position_of_color": lambda scene, thing: thing.position,
    "count": lambda scene, thing: NUMBERS[len(scene.things)],
    "describe": lambda scene, thing: caption(scene),
}
"""The answer of each type but yesno, given the thing asked about."""


def _ask_pair(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """Colour, shape and answer of a yesno question: half yes, and most no-answers join what belongs to two things."""
    pairs = {thing.pair for thing in scene.things}
    if rng.random() < 0.5:
        return (*rng.choice(scene.things).pair, "yes")
    if len(scene.things) > 1 and rng.random() < 0.7:
        first, second = rng.sample(scene.things, 2)
        return first.color, second.shape, "no"
    while True:
        color, shape = rng.choice(COLORS), rng.choice(SHAPES)
        if (color, shape) not in pairs:
            return color, shape, "no"
