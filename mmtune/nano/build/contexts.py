"""Random batches of scenes, contexts and questions for the nano language model, drawn with numpy.

A row is one scene: a context followed by several short questions. Contexts come in six kinds, see ``KINDS``.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmtune.nano.build.templates import (
    ABSENT,
    IntArray,
    context_templates,
    describe_templates,
    fill,
    question_templates,
)
from mmtune.nano.build.vectors import BAG, FloatArray, Scenes, grid_vectors, inline_vectors, slot_vectors
from mmtune.nano.build.vocabulary import BOS, EOS, Words
from mmtune.nano.world.scene import COLORS, SHAPES, SHORT_TYPES

KINDS = ("text", "slots", "grid", "inline", "blind")
"""text: words; slots: a few vectors, some of them things; grid: 6x6 patch vectors; inline: things added to the words of
the question; blind: nothing."""

COUNTED = 3
REPLACED = -50
"""A place whose vector comes from its bag alone."""

TYPE_WEIGHTS = {"color_of_shape": 1.2, "shape_of_color": 1.3, "yesno": 1.4, "count": 0.9}


@dataclass
class Batch:
    """Token ids with what must be added to their embeddings.

    ``bags`` [rows, length, BAG] are ids of words whose embeddings are added with weight ``bag_scale`` [rows, length];
    ``replace`` marks places that have no token of their own; ``noise`` is the standard deviation added there.
    ``told`` marks the last token of each thing in a text, ``asked`` the words of questions that name one, both with the
    thing's index (else -1; ``COUNTED`` where a question counts). ``facts`` [rows, 3, 6] are the things' attributes, as
    indices, and how many there are.
    """

    kind: str
    ids: IntArray
    valid: npt.NDArray[np.bool_]
    segment: IntArray
    joined: npt.NDArray[np.bool_]
    scored: IntArray
    type: IntArray
    things: IntArray
    bags: IntArray
    bag_scale: FloatArray
    replace: npt.NDArray[np.bool_]
    noise: FloatArray
    told: IntArray
    asked: IntArray
    facts: IntArray


class BatchMaker:
    """Draws batches; the same generator state gives the same batch."""

    def __init__(self, words: Words, generator: np.random.Generator) -> None:
        self.words, self.generator = words, generator
        self.turns = question_templates(words)
        self.forms = context_templates(words)
        lists = (
            words.color,
            words.shape,
            words.size,
            words.row,
            words.column,
            words.number,
            words.article,
            words.answer,
        )
        self.color, self.shape, self.size, self.row, self.column, self.number, self.article, self.answer = (
            np.array(ids, dtype=np.int64) for ids in lists
        )
        self.describing, self.caption = describe_templates(words)
        self.starts_with_vowel = np.array([color[0] in "aeiou" for color in COLORS], dtype=np.int64)
        weights = np.array([TYPE_WEIGHTS.get(name, 1.0) for name in SHORT_TYPES])
        self.type_weights = weights / weights.sum()
        self.head = np.array([BOS, *words.encode("USER:")], dtype=np.int64)
        self.space, self.period = words.encode(" ")[0], words.encode(".")[0]
        counting = (" many", "count", "Count", " count", " Count")
        self.counting = np.array([words.encode(word)[0] for word in counting], dtype=np.int64)

    def scenes(self, rows: int, minimum: int = 1, maximum: int = 3) -> Scenes:
        """Draw scenes; things beyond ``number`` are to be ignored."""
        draw = self.generator
        number = draw.integers(minimum, maximum + 1, rows)
        shape, color, cell = (draw.random((rows, count)).argsort(1)[:, :3] for count in (len(SHAPES), len(COLORS), 9))
        return Scenes(shape, color, draw.integers(0, 2, (rows, 3)), cell, number)

    def bag(self, scenes: Scenes) -> IntArray:
        """Ids of the words of every thing, [rows, 3, BAG]."""
        return np.stack(
            [
                self.color[scenes.color],
                self.shape[scenes.shape],
                self.size[scenes.size],
                self.row[scenes.cell // 3],
                self.column[scenes.cell % 3],
            ],
            axis=-1,
        )

    def batch(
        self, kind: str, rows: int, turns: int, minimum: int = 1, maximum: int = 3, joined: bool = False
    ) -> Batch:
        """Draw a batch of one kind. ``joined``: turns see earlier turns. No turns: one ``describe`` question."""
        scenes = self.scenes(rows, minimum, maximum)
        bag = self.bag(scenes)
        together = np.full(rows, joined)
        ids, scored, kinds = self._questions(scenes, bag, together, turns) if turns else self._describe(scenes, bag)
        turns = ids.shape[1]
        width = ids.shape[-1]
        context, context_bags, context_scale, told = self._context(kind, scenes, bag)
        length = context.shape[1]
        full = np.concatenate([context, ids.reshape(rows, turns * width)], axis=1)
        bags = np.zeros((*full.shape, BAG), dtype=np.int64)
        scale = np.zeros(full.shape, dtype=np.float32)
        bags[:, :length], scale[:, :length] = context_bags, context_scale
        if kind == "inline":
            bags[:, length:], scale[:, length:] = inline_vectors(
                self.generator, scenes, bag, full[:, length:], self.counting, self.number
            )
        segment = np.concatenate([np.zeros(length, dtype=np.int64), np.repeat(np.arange(1, turns + 1), width)])
        replace = full == REPLACED
        amount = self.generator.choice([0.0, 0.1, 0.3, 0.5], size=(rows, 1))
        noise = np.where(replace | (scale > 0), amount, 0.0).astype(np.float32)
        return Batch(
            kind,
            np.where(full < 0, 0, full),
            full != ABSENT,
            segment,
            together,
            np.concatenate([np.zeros((rows, length), dtype=np.int64), scored.reshape(rows, turns * width)], axis=1),
            np.concatenate([np.full((rows, length), -1), np.repeat(kinds, width, axis=1)], axis=1),
            scenes.number,
            bags,
            scale,
            replace,
            noise,
            np.concatenate([told, np.full((rows, turns * width), -1)], axis=1),
            self._asked(scenes, bag, full, length, scored.reshape(rows, -1)),
            self._facts(scenes),
        )

    def _asked(self, scenes: Scenes, bag: IntArray, ids: IntArray, length: int, scored: IntArray) -> IntArray:
        """Mark the words of the questions that name a thing, and those that count."""
        marks = np.where(np.isin(ids, self.counting), COUNTED, -1)
        for thing in range(3):
            named = (ids[..., None] == bag[:, None, thing, :2]).any(-1) & (thing < scenes.number)[:, None]
            marks[named] = thing
        marks[:, :length] = -1
        marks[:, length:][scored > 0] = -1
        return marks

    def _facts(self, scenes: Scenes) -> IntArray:
        """Attribute indices of every thing: shape, colour, size, row, column; last how many things there are."""
        number = np.broadcast_to(scenes.number[:, None] - 1, scenes.shape.shape)
        parts = [scenes.shape, scenes.color, scenes.size, scenes.cell // 3, scenes.cell % 3, number]
        return np.stack(parts, axis=-1)

    def _questions(
        self, scenes: Scenes, bag: IntArray, together: npt.NDArray[np.bool_], turns: int
    ) -> tuple[IntArray, IntArray, IntArray]:
        """Ids and marks [rows, turns, width] and types [rows, turns] of random questions."""
        draw, rows = self.generator, len(scenes.number)
        kinds = draw.choice(len(SHORT_TYPES), size=(rows, turns), p=self.type_weights)
        asked = (draw.random((rows, turns)) * scenes.number[:, None]).astype(np.int64)
        line = np.arange(rows)[:, None]
        thing = bag[line, asked]
        color, shape = scenes.color[line, asked], scenes.shape[line, asked]
        color, shape, truth = self._pairs(scenes, kinds == SHORT_TYPES.index("yesno"), asked, color, shape)
        values = np.stack(
            [
                self.color[color],
                self.shape[shape],
                thing[..., 2],
                thing[..., 3],
                thing[..., 4],
                self.article[self.starts_with_vowel[color]],
                np.broadcast_to(self.number[scenes.number][:, None], (rows, turns)),
                self.answer[truth],
            ],
            axis=-1,
        )
        lead = np.zeros((rows, turns), dtype=np.int64)
        lead[:, 1:] = together[:, None]
        chosen = self.turns.start[lead, kinds] + (draw.random((rows, turns)) * self.turns.number[kinds]).astype(int)
        ids, scored = fill(self.turns.ids[chosen], values), self.turns.scored[chosen]
        used = int((ids != ABSENT).any((0, 1)).sum())
        return ids[..., :used], scored[..., :used], kinds

    def _describe(self, scenes: Scenes, bag: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """One ``describe`` question for each row, answered with the caption."""
        rows = len(scenes.number)
        there = np.arange(3) < scenes.number[:, None]
        order = np.where(there, scenes.cell, 9).argsort(1)
        values = np.concatenate([bag[np.arange(rows)[:, None], order], np.full((rows, 3, 1), self.article[0])], axis=2)
        parts = fill(np.broadcast_to(self.caption, (rows, 3, self.caption.shape[-1])), values)
        parts = np.where(there[..., None], parts, ABSENT).reshape(rows, -1)[:, 1:]
        end = np.tile([self.period, EOS], (rows, 1))
        question = self.describing[self.generator.integers(0, len(self.describing), rows)]
        ids = np.concatenate([question, parts, end], axis=1)
        scored = np.concatenate([np.zeros_like(question), np.ones_like(parts), np.tile([1, 2], (rows, 1))], axis=1)
        close = (ids == ABSENT).argsort(axis=1, kind="stable")
        ids, scored = np.take_along_axis(ids, close, axis=1), np.take_along_axis(scored, close, axis=1)
        scored[ids == ABSENT] = 0
        return ids[:, None], scored[:, None], np.full((rows, 1), len(SHORT_TYPES))

    def _pairs(
        self, scenes: Scenes, ask: npt.NDArray[np.bool_], asked: IntArray, color: IntArray, shape: IntArray
    ) -> tuple[IntArray, IntArray, IntArray]:
        """Colour, shape and truth for yesno questions: half true; of the others most mix two things."""
        draw, rows = self.generator, len(asked)
        false = ask & (draw.random(asked.shape) < 0.5)
        number = scenes.number[:, None]
        mix = false & (number > 1) & (draw.random(asked.shape) < 0.7)
        other = (asked + 1 + (draw.random(asked.shape) * (number - 1)).astype(int)) % number
        line = np.arange(rows)[:, None]
        shape = np.where(mix, scenes.shape[line, other], shape)
        rest = false & ~mix
        color = np.where(rest, draw.integers(0, len(COLORS), asked.shape), color)
        shape = np.where(rest, draw.integers(0, len(SHAPES), asked.shape), shape)
        there = np.arange(3) < number
        same = (scenes.color[:, None] == color[..., None]) & (scenes.shape[:, None] == shape[..., None])
        return color, shape, (same & there[:, None]).any(-1).astype(np.int64)

    def _context(self, kind: str, scenes: Scenes, bag: IntArray) -> tuple[IntArray, IntArray, FloatArray, IntArray]:
        """Ids [rows, length] of head and context, bags and scale of the context's vectors, ends of things in text."""
        rows = len(scenes.number)
        head = np.broadcast_to(self.head, (rows, len(self.head)))
        space = np.full((rows, 1), self.space)
        if kind == "text":
            body, told = self._text(scenes, bag)
            told = np.concatenate([np.full(head.shape, -1), told], axis=1)
            return np.concatenate([head, body], axis=1), np.zeros((1, 1, BAG), dtype=np.int64), np.zeros((1, 1)), told
        head = np.concatenate([head, space], axis=1)
        if kind in ("inline", "blind"):
            return head, np.zeros((1, 1, BAG), dtype=np.int64), np.zeros((1, 1)), np.full(head.shape, -1)
        make = grid_vectors if kind == "grid" else slot_vectors
        bags, scale = make(self.generator, scenes, bag, self.words.nothing)
        body = np.full(scale.shape, REPLACED)
        pad = head.shape[1]
        bags = np.concatenate([np.zeros((rows, pad, BAG), dtype=np.int64), bags], axis=1)
        scale = np.concatenate([np.zeros((rows, pad)), scale], axis=1)
        context = np.concatenate([head, body], axis=1)
        return context, bags, scale, np.full(context.shape, -1)

    def _text(self, scenes: Scenes, bag: IntArray) -> tuple[IntArray, IntArray]:
        """The things in words, in any order; one form for a scene most of the time."""
        draw, rows = self.generator, len(scenes.number)
        order = np.where(np.arange(3) < scenes.number[:, None], draw.random((rows, 3)), 2.0).argsort(1)
        values = np.concatenate([bag[np.arange(rows)[:, None], order], np.zeros((rows, 3, 1), dtype=np.int64)], axis=2)
        forms = draw.integers(0, len(self.forms), (rows, 3))
        forms = np.where(draw.random((rows, 1)) < 0.7, forms[:, :1], forms)
        templates = self.forms[forms]
        after = np.roll(templates, -1, axis=2)
        vowel = self.starts_with_vowel[scenes.color[np.arange(rows)[:, None], order]]
        values[..., 5] = self.article[0]
        filled = fill(templates, values)
        an = (templates == -6) & (after == -1) & (vowel[..., None] == 1)
        filled = np.where(an, self.article[1], filled)
        filled = np.where((np.arange(3) < scenes.number[:, None])[..., None], filled, ABSENT)
        here = filled != ABSENT
        last = here & (here.cumsum(2) == here.sum(2, keepdims=True))
        return filled.reshape(rows, -1), np.where(last, order[..., None], -1).reshape(rows, -1)
