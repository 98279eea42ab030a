"""What a free answer says to a yes/no question, by each of the rules in use, and the measures of POPE."""

from __future__ import annotations

from collections.abc import Sequence

from mmtune.evaluation.scorers.vqa_text import vlmevalkit_punctuation

UNKNOWN = "Unknown"
_PREFIX = 4  # characters that the rule of MME's own script looks at


def vlmevalkit_yes_no(prediction: str) -> str:
    """``Yes``, ``No``, or ``Unknown`` when neither or both words stand in the answer.

    Source:
        VLMEvalKit ``YOrN_Extraction``. Asterisks, apostrophes and colons are no punctuation there.
    """
    words = vlmevalkit_punctuation(prediction.lower()).split()
    if ("yes" in words) == ("no" in words):
        return UNKNOWN
    return "Yes" if "yes" in words else "No"


def pope_yes_no(prediction: str) -> str:
    """``no`` when the first sentence holds one of three words, and ``yes`` in every other case, also for silence.

    Source:
        POPE's ``evaluate.py``, the same as LLaVA's ``eval_pope``.
    """
    words = prediction.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if any(word in words for word in ("No", "not", "no")) else "yes"


def mme_yes_no(prediction: str) -> str:
    """``yes``, ``no`` or ``other`` by the first four characters.

    Source:
        MME's ``calculation.py``.
    """
    text = prediction.lower()
    if text in ("yes", "no"):
        return text
    start = text[:_PREFIX]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def confusion(said: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """Counts of POPE: ``TP``, ``FP``, ``TN``, ``FN`` with "yes" as positive."""
    counts = dict.fromkeys(("TP", "FP", "TN", "FN"), 0)
    for answer, label in zip(said, labels, strict=True):
        counts[("T" if answer == label else "F") + ("P" if answer == "yes" else "N")] += 1
    return counts


def pope_measures(counts: dict[str, int]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and the share of "yes"; a ratio over nothing is 0."""
    positive, relevant = counts["TP"] + counts["FP"], counts["TP"] + counts["FN"]
    n = sum(counts.values())
    precision, recall = _ratio(counts["TP"], positive), _ratio(counts["TP"], relevant)
    return {
        "accuracy": _ratio(counts["TP"] + counts["TN"], n),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(positive, n),
        "n": n,
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
