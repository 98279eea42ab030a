"""Question and context templates as arrays of token ids with coded gaps, so that numpy fills whole batches."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmtune.nano.build.phrases import CONTEXT_FORMS
from mmtune.nano.build.vocabulary import EOS, Words
from mmtune.nano.world.scene import SHORT_TYPES, TEMPLATES

IntArray = npt.NDArray[np.int64]

GAPS = ("color", "shape", "size", "row", "column", "article", "number", "answer")
"""What a gap stands for; gap ``i`` is coded ``-1 - i`` in a template and looked up in column ``i`` of the fillings."""

ABSENT = -100
"""Padding inside a template."""

_PROBES = {
    "color": ("red", "orange"),
    "shape": ("circle", "star"),
    "size": ("big", "small"),
    "row": ("top", "bottom"),
    "column": ("left", "right"),
    "article": ("a", "an"),
}
_ANSWER_GAPS = {
    "color_of_shape": ("color",),
    "shape_of_color": ("shape",),
    "size_of_shape": ("size",),
    "size_of_color": ("size",),
    "position_of_shape": ("row", "column"),
    "position_of_color": ("row", "column"),
    "count": ("number",),
    "yesno": ("answer",),
}


def compile_text(words: Words, text: str) -> list[int]:
    """Ids of a text with ``{color}``-like gaps, each gap as its code."""
    base = {name: pair[0] for name, pair in _PROBES.items()}
    ids = words.encode(text.format(**base))
    coded = list(ids)
    for index, name in enumerate(GAPS[: len(_PROBES)]):
        other = words.encode(text.format(**{**base, name: _PROBES[name][1]}))
        if len(other) != len(ids):
            raise ValueError(f"{text!r} changes its length with {name}.")
        for place, (left, right) in enumerate(zip(ids, other, strict=True)):
            if left != right:
                coded[place] = -1 - index
    return coded


def _padded(rows: list[list[int]]) -> IntArray:
    width = max(len(row) for row in rows)
    return np.array([row + [ABSENT] * (width - len(row)) for row in rows], dtype=np.int64)


@dataclass(frozen=True)
class Turns:
    """Every phrasing of every short question type, with its answer and ``</s>``.

    ``start[lead, type]`` and ``number[type]`` delimit the phrasings in ``ids``; lead 0 follows a context (a newline
    comes first), lead 1 follows an earlier turn (``USER:``). ``scored`` marks the answer (1) and its ``</s>`` (2).
    """

    ids: IntArray
    scored: IntArray
    start: IntArray
    number: IntArray


def question_templates(words: Words) -> Turns:
    """Compile the short questions, both with a small and a capital first letter."""
    rows: list[list[int]] = []
    marks: list[list[int]] = []
    start = np.zeros((2, len(SHORT_TYPES)), dtype=np.int64)
    number = np.zeros(len(SHORT_TYPES), dtype=np.int64)
    for lead, before in enumerate(("\n", "USER: ")):
        for index, name in enumerate(SHORT_TYPES):
            start[lead, index] = len(rows)
            number[index] = 2 * len(TEMPLATES[name])
            answer = [-1 - GAPS.index(gap) for gap in _ANSWER_GAPS[name]] + [EOS]
            for text in TEMPLATES[name]:
                for form in (text, text[0].upper() + text[1:]):
                    question = compile_text(words, before + form + " ASSISTANT:")
                    rows.append(question + answer)
                    marks.append([0] * len(question) + [1] * (len(answer) - 1) + [2])
    scored = _padded(marks)
    scored[scored == ABSENT] = 0
    return Turns(_padded(rows), scored, start, number)


def context_templates(words: Words) -> IntArray:
    """Compile the forms of one thing in text, each with a small and a capital first letter where it has one."""
    rows = []
    for (text,) in CONTEXT_FORMS:
        rows.append(compile_text(words, " " + text))
        rows.append(compile_text(words, " " + (text[0].upper() + text[1:] if text[0] != "{" else text)))
    return _padded(rows)


def describe_templates(words: Words) -> tuple[IntArray, IntArray]:
    """The ``describe`` questions, and one part of the answer: ``and`` (dropped at the start) and a thing."""
    texts = TEMPLATES["describe"]
    forms = [form for text in texts for form in (text, text[0].upper() + text[1:])]
    questions = _padded([compile_text(words, "\n" + form + " ASSISTANT:") for form in forms])
    part = compile_text(words, " and {article} {size} {color} {shape} at the {row} {column}")
    return questions, np.array(part, dtype=np.int64)


def fill(templates: IntArray, values: IntArray) -> IntArray:
    """Put ``values[..., gap]`` into the gaps of ``templates[..., place]``; padding stays ``ABSENT``."""
    gaps = np.clip(-1 - templates, 0, values.shape[-1] - 1)
    filled = np.take_along_axis(values, gaps, axis=-1)
    return np.where((templates < 0) & (templates != ABSENT), filled, templates)
