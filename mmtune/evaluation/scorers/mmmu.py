"""Answers of MMMU as its own evaluation parses them.

Source:
    MMMU-Benchmark/MMMU ``eval_utils.py``. Where it draws a random option, nothing is parsed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Value = str | float

_EDGES = (",", ".", "!", "?", ";", ":", "'")
_TRIVIAL = frozenset({":", ",", ".", "!", "?", ";", "'"})
_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_MANY_WORDS = 5  # option texts are looked for only in answers of more words
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def parse_choice(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that a response names; of several the one named last, None when there is none."""
    for edge in _EDGES:
        response = response.strip(edge)
    padded = f" {response} "
    for form, last in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        named = [letter for letter in options if form.format(letter) in padded]
        if named:
            return _latest({letter: padded.rfind(last.format(letter)) for letter in named})
    if len(padded.split()) <= _MANY_WORDS:
        return None
    lower = padded.lower()
    places = {letter: lower.rfind(text.lower()) for letter, text in options.items() if text.lower() in lower}
    return _latest(places) if places else None


def _latest(places: Mapping[str, int]) -> str:
    """The letter with the largest place; the first of those that share it."""
    return max(places, key=lambda letter: places[letter])


def parse_open(response: str) -> list[Value]:
    """The texts and numbers that a response to an open question may have given as its answer, each once."""
    parts = _key_parts(response)
    texts = [*parts, *(number for part in parts for pattern in _NUMBERS for number in pattern.findall(part))]
    return list(dict.fromkeys(value for text in texts for value in normalize(text)))


def _key_parts(response: str) -> list[str]:
    whole = response.strip().strip(".").lower()
    lines = whole.split("\n")
    found = []
    for index, line in enumerate(lines):
        cues = (*_CUES, "=") if index == len(lines) - 1 else _CUES
        shortest = ""
        for tail in (line.split(cue)[-1].strip() for cue in cues if cue in line):
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            found.append(shortest)
    return found or [whole]


def normalize(text: str) -> list[Value]:
    """A number rounded to two places, or the lower-cased text; single characters get a blank on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def open_is_right(parsed: Sequence[Value], golds: Sequence[str]) -> bool:
    """Whether a parsed text holds a gold text, or a parsed number equals a gold number."""
    right = [value for gold in golds for value in normalize(gold)]
    texts = [value for value in right if isinstance(value, str)]
    return any(any(gold in value for gold in texts) if isinstance(value, str) else value in right for value in parsed)
