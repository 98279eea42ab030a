"""Scenes as vectors: a grid of patches, a few slots, or additions to the words of a question.

A vector is described by a bag (ids of the words whose embeddings are summed; -1 is none) and a scale.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmtune.nano.build.templates import IntArray

GRID = 6
BAG = 5
"""Colour, shape, size, row and column: the words whose embeddings add up to one thing."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scenes:
    """Arrays [rows, 3] of attribute indices and the number of things [rows]; what is beyond it is to be ignored."""

    shape: IntArray
    color: IntArray
    size: IntArray
    cell: IntArray
    number: IntArray


def grid_vectors(draw: np.random.Generator, scenes: Scenes, bag: IntArray, nothing: int) -> tuple[IntArray, FloatArray]:
    """6x6 patches: each thing fills the four of its cell, sometimes fewer."""
    rows = len(scenes.number)
    bags = np.full((rows, GRID * GRID, BAG), nothing)
    scale = _empty(draw, (rows, GRID * GRID))
    strength = _strength(draw, rows)
    line = np.arange(rows)
    for thing in range(3):
        there = thing < scenes.number
        sure = draw.integers(0, 4, rows)
        partial = draw.random(rows) < 0.3
        for patch in range(4):
            shown = there & (~partial | (patch == sure) | (draw.random(rows) < 0.5))
            row = scenes.cell[:, thing] // 3 * 2 + patch // 2
            place = row * GRID + scenes.cell[:, thing] % 3 * 2 + patch % 2
            bags[line[shown], place[shown]] = bag[shown, thing]
            scale[line[shown], place[shown]] = (strength * draw.uniform(0.8, 1.2, rows))[shown]
    return bags, scale.astype(np.float32)


def slot_vectors(draw: np.random.Generator, scenes: Scenes, bag: IntArray, nothing: int) -> tuple[IntArray, FloatArray]:
    """3 to 8 vectors in any order: every thing once or more, the others empty."""
    rows = len(scenes.number)
    number = int(draw.integers(3, 9))
    content = np.where(np.arange(number) < 3, np.arange(number), draw.integers(0, 6, (rows, number)))
    content = np.take_along_axis(content, draw.random((rows, number)).argsort(1), axis=1)
    shown = content < scenes.number[:, None]
    line = np.arange(rows)[:, None]
    bags = np.where(shown[..., None], bag[line, np.minimum(content, 2)], nothing)
    strength = _strength(draw, rows)[:, None] * draw.uniform(0.8, 1.2, (rows, number))
    return bags, np.where(shown, strength, _empty(draw, (rows, number))).astype(np.float32)


def inline_vectors(
    draw: np.random.Generator, scenes: Scenes, bag: IntArray, ids: IntArray, counting: IntArray, number: IntArray
) -> tuple[IntArray, FloatArray]:
    """Additions to the words of the turns: what is known of a thing, wherever its colour or shape is named.

    ``counting`` are ids to which the number word of the scene, one of the ids ``number``, is added.
    """
    bags = np.full((*ids.shape, BAG), -1)
    scale = np.zeros(ids.shape, dtype=np.float32)
    strength = _strength(draw, len(ids))
    for thing in range(3):
        there = (thing < scenes.number)[:, None]
        for key in (0, 1):
            where = np.nonzero((ids == bag[:, thing, key][:, None]) & there)
            others = bag[where[0], thing].copy()
            others[:, key] = -1
            bags[where] = others
            scale[where] = strength[where[0]]
    where = np.nonzero(np.isin(ids, counting))
    bags[where] = -1
    bags[(*where, np.zeros_like(where[0]))] = number[scenes.number][where[0]]
    scale[where] = strength[where[0]]
    return bags, scale


def _strength(draw: np.random.Generator, rows: int) -> FloatArray:
    return draw.uniform(0.4, 1.1, rows).astype(np.float32)


def _empty(draw: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    """Scale of the empty vectors of each row: 0, or so that "nothing", which fills a whole bag, counts 0.8."""
    choice = draw.random((shape[0], 1)) < 0.5
    return np.broadcast_to(np.where(choice, 0.0, 0.8 / BAG), shape).astype(np.float32).copy()
