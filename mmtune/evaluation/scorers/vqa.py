"""Accuracy of an answer against those of ten annotators, each of whom is left out in turn.

Source:
    Antol et al. 2015, VQA: Visual Question Answering; its official evaluation ``vqaEval``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmtune.evaluation.scorers.vqa_text import official

Normalize = Callable[[str], str]
_ENOUGH = 3  # annotators that have to agree for a full score


def leave_one_out(answer: str, golds: Sequence[str]) -> float:
    """Mean over the annotators of ``min(1, matches among the others / 3)``; both sides in their final form.

    Annotators are told apart by their place, so that two who said the same both count.
    """
    if not golds:
        return 0.0
    matches = sum(gold == answer for gold in golds)
    # Added up as the references do: totals are rounded to two places, where a last bit may decide.
    return sum(min(1.0, (matches - (gold == answer)) / _ENOUGH) for gold in golds) / len(golds)


def normalized_accuracy(answer: str, golds: Sequence[str], normalize: Normalize) -> float:
    """The accuracy when both sides are always normalised, 0 to 1, as the m4c evaluator and VLMEvalKit have it."""
    return leave_one_out(normalize(answer), [normalize(gold) for gold in golds])


def official_accuracy(answer: str, golds: Sequence[str]) -> float:
    """The official accuracy, 0 to 1: neither side is normalised when the annotators are unanimous.

    So "Yes." scores nothing where all ten said "yes". Blanks are settled in any case.
    """
    said, found = _blanks(answer), [_blanks(gold) for gold in golds]
    if len(set(found)) > 1:
        said, found = official(said), [official(gold) for gold in found]
    return leave_one_out(said, found)


def _blanks(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
