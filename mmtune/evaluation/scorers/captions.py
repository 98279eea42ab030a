"""BLEU, ROUGE-L and CIDEr of tokenised captions, as the COCO caption evaluation computes them.

Captions are texts whose tokens are separated by blanks; who tokenised them is settled before (see :mod:`ptb`).

Source:
    Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE-L), Vedantam et al. 2015 (CIDEr-D, arXiv 1411.5726); the constants and
    the order of rounding are those of ``pycocoevalcap``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ORDERS = 4
_SMALL, _TINY = 1e-9, 1e-15  # keep ratios of nothing finite
_RECALL_WEIGHT = 1.2  # ROUGE-L's beta
_SIGMA = 6.0  # of CIDEr's penalty for another length

Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BleuCounts:
    """What BLEU needs to know of one caption, or of the sum of several.

    Args:
        length, closest: Tokens of the caption and of the reference nearest to it in length.
        guessed, right: N-grams of each order, and those of them that references hold.
    """

    length: float
    closest: float
    guessed: tuple[float, ...]
    right: tuple[float, ...]


def grams(caption: str) -> Counter[Gram]:
    """All n-grams up to order four with their counts."""
    words = caption.split()
    return Counter(
        tuple(words[at : at + order]) for order in range(1, ORDERS + 1) for at in range(len(words) - order + 1)
    )


def bleu_counts(caption: str, references: Sequence[str]) -> BleuCounts:
    """The counts of one caption against its references."""
    most: Counter[Gram] = Counter()
    for reference in references:
        most |= grams(reference)
    length = len(caption.split())
    closest = min((abs(len(text.split()) - length), len(text.split())) for text in references)[1]
    right = [0] * ORDERS
    for gram, count in grams(caption).items():
        right[len(gram) - 1] += min(count, most[gram])
    guessed = tuple(float(max(0, length - order)) for order in range(ORDERS))
    return BleuCounts(length, closest, guessed, tuple(map(float, right)))


def bleu(counts: BleuCounts) -> list[float]:
    """BLEU-1 to BLEU-4 from counts, with the brevity penalty."""
    found, product = [], 1.0
    for order in range(ORDERS):
        product *= (counts.right[order] + _TINY) / (counts.guessed[order] + _SMALL)
        found.append(product ** (1 / (order + 1)))
    ratio = (counts.length + _TINY) / (counts.closest + _SMALL)
    return [value * math.exp(1 - 1 / ratio) for value in found] if ratio < 1 else found


def bleu_total(counts: Sequence[BleuCounts]) -> BleuCounts:
    """The sum of counts, of which BLEU of a whole set is made."""
    return BleuCounts(
        sum(each.length for each in counts),
        sum(each.closest for each in counts),
        tuple(sum(each.guessed[order] for each in counts) for order in range(ORDERS)),
        tuple(sum(each.right[order] for each in counts) for order in range(ORDERS)),
    )


def rouge_l(caption: str, references: Sequence[str]) -> float:
    """ROUGE-L of one caption: best precision and best recall over the references, whichever they come from."""
    words = caption.split(" ")
    shared = [(_common(words, text.split(" ")), len(text.split(" "))) for text in references]
    precision = max(length / len(words) for length, _ in shared)
    recall = max(length / size for length, size in shared)
    if not precision or not recall:
        return 0.0
    square = _RECALL_WEIGHT**2
    return (1 + square) * precision * recall / (recall + square * precision)


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for at, other in enumerate(second, start=1):
            before, row[at] = row[at], before + 1 if word == other else max(row[at], row[at - 1])
    return row[-1]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption, times ten. N-grams are weighted by how few pictures of this set have them.

    The number of pictures enters the weights: a set of one picture scores 0.
    """
    counted = [[grams(text) for text in texts] for texts in references]
    pictures: Counter[Gram] = Counter(gram for texts in counted for gram in set().union(*texts))
    log_count = math.log(len(captions)) if captions else 0.0
    weigh = {gram: log_count - math.log(count) for gram, count in pictures.items()}
    found = []
    for caption, texts in zip(captions, counted, strict=True):
        said = _Weighted.of(grams(caption), weigh, log_count)
        total = sum(said.similarity(_Weighted.of(text, weigh, log_count)) for text in texts)
        found.append(10 * total / len(texts) if texts else 0.0)
    return found


@dataclass(frozen=True, slots=True)
class _Weighted:
    """A caption as tf-idf vectors, one for each order."""

    vectors: tuple[dict[Gram, float], ...]
    norms: tuple[float, ...]
    bigrams: int  # the length that the reference program compares

    @classmethod
    def of(cls, counts: Mapping[Gram, int], weigh: Mapping[Gram, float], unseen: float) -> _Weighted:
        vectors: tuple[dict[Gram, float], ...] = tuple({} for _ in range(ORDERS))
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * weigh.get(gram, unseen)
        norms = tuple(math.sqrt(sum(value * value for value in vector.values())) for vector in vectors)
        return cls(vectors, norms, sum(count for gram, count in counts.items() if len(gram) == 2))

    def similarity(self, other: _Weighted) -> float:
        """Mean over the orders of the clipped cosine, with the penalty for another length."""
        penalty = math.exp(-((self.bigrams - other.bigrams) ** 2) / (2 * _SIGMA**2))
        total = 0.0
        for mine, theirs, norm, other_norm in zip(self.vectors, other.vectors, self.norms, other.norms, strict=True):
            product = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs)
            total += product / (norm * other_norm) if norm and other_norm else product
        return penalty * total / ORDERS
