"""Which option a free answer to a multiple-choice question means, by the rules of VLMEvalKit's exact matching.

Source:
    VLMEvalKit ``can_infer``; the rule ``2024`` is that of its commit 18fc37a, in use when VLoRA was published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

RULES = ("current", "2024")
REFUSED = "Z"
"""The letter of an answer that refuses to choose."""

_API_FAILURE = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_TOKENS = 5  # a letter further from the end than this is taken for a word of a sentence
_STATEMENT = re.compile(r"answer\s+is\s+\**([A-D])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Inferred:
    """What an answer means.

    Args:
        letter: An option's letter, ``Z`` for a refusal, or None when nothing can be inferred.
        how: Which step inferred it: ``letter``, ``refusal``, ``statement``, ``text`` or ``nothing``.
    """

    letter: str | None
    how: str


def infer_option(prediction: str, options: Mapping[str, str], rule: str = "current") -> Inferred:
    """The option that an answer names by its letter, or else by its text.

    Args:
        options: Letter to text of the options that the row has.
        rule: ``current``, or ``2024`` without its three later additions: the window of the letter, the statement
            "answer is X", and the longest answer whose text is searched for options.
    """
    found = infer_letter(prediction, options, rule)
    return found if found.letter else _infer_text(prediction, options, rule)


def infer_letter(prediction: str, options: Mapping[str, str], rule: str = "current") -> Inferred:
    """The option that an answer names by its letter; the first half of :func:`infer_option`."""
    if _API_FAILURE in prediction:
        return Inferred(None, "nothing")
    if any(sentence in prediction for sentence in _REFUSALS):
        return Inferred(REFUSED, "refusal")
    tokens = prediction.translate(_SEPARATORS).split()
    named = [letter for letter in options if letter in tokens]
    if len(named) == 1 and (rule == "2024" or tokens.index(named[0]) > len(tokens) - _LAST_TOKENS):
        return Inferred(named[0], "letter")
    if not named and REFUSED in tokens:
        return Inferred(REFUSED, "refusal")
    stated = _STATEMENT.search(prediction) if rule != "2024" else None
    if stated and stated.group(1).upper() in options:
        return Inferred(stated.group(1).upper(), "statement")
    return Inferred(None, "nothing")


def _infer_text(prediction: str, options: Mapping[str, str], rule: str) -> Inferred:
    answer = prediction.lower()
    if rule != "2024" and len(answer) > 2 * sum(len(text) for text in options.values()):
        return Inferred(None, "nothing")
    contained = [letter for letter, text in options.items() if text.lower() in answer]
    return Inferred(contained[0], "text") if len(contained) == 1 else Inferred(None, "nothing")
