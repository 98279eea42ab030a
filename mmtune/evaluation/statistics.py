"""How sure a score is: Wilson intervals for shares of right answers, a seeded bootstrap for other means."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

LEVEL = 0.95


def wilson(hits: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The Wilson score interval of ``hits`` out of ``n``; the whole unit interval when ``n`` is 0.

    Source:
        Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = hits / n
    scale = 1 + z * z / n
    center = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    low = 0.0 if hits == 0 else max(0.0, center - half)
    high = 1.0 if hits == n else min(1.0, center + half)
    return low, high


def bootstrap(
    sums: Sequence[float], weights: Sequence[float], *, level: float = LEVEL, rounds: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """A percentile interval of ``sum(sums) / sum(weights)`` under resampling of the items with replacement."""
    n = len(sums)
    if n == 0:
        return math.nan, math.nan
    rng = random.Random(seed)
    ratios = []
    for _ in range(rounds):
        drawn = rng.choices(range(n), k=n)
        total = sum(weights[index] for index in drawn)
        ratios.append(sum(sums[index] for index in drawn) / total if total else math.nan)
    ratios.sort()
    tail = (1 - level) / 2
    return ratios[math.floor(tail * (rounds - 1))], ratios[math.ceil((1 - tail) * (rounds - 1))]


def share_interval(hits: float, n: int) -> dict[str, Any]:
    """The JSON form of a Wilson interval."""
    low, high = wilson(hits, n)
    return {"low": low, "high": high, "level": LEVEL, "method": "wilson"}


def ratio_interval(sums: Sequence[float], weights: Sequence[float]) -> dict[str, Any]:
    """The JSON form of a bootstrap interval of a ratio of sums."""
    low, high = bootstrap(sums, weights)
    return {"low": low, "high": high, "level": LEVEL, "method": "bootstrap"}
