"""How sure a score is, and whether two runs differ: Wilson intervals, seeded bootstraps over clusters, McNemar's test.

A cluster is what was drawn together: the questions about one picture, or the rotations of one base question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
ROUNDS = 1000

Array = NDArray[np.float64]


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
    sums: Sequence[float], weights: Sequence[float], *, level: float = LEVEL, rounds: int = ROUNDS, seed: int = 0
) -> tuple[float, float]:
    """A percentile interval of ``sum(sums) / sum(weights)`` under resampling of the items with replacement."""
    statistics = np.column_stack([np.asarray(sums, dtype=float), np.asarray(weights, dtype=float)])
    return bootstrap_of(statistics, _ratio, level=level, rounds=rounds, seed=seed)


def bootstrap_of(
    statistics: Array,
    score: Callable[[Array], Array],
    *,
    level: float = LEVEL,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> tuple[float, float]:
    """A percentile interval of a score that is a function of sums.

    Args:
        statistics: What each cluster adds to the sums, ``[C, S]``.
        score: Sums of each round, ``[R, S]``, to scores, ``[R]``.
    """
    if not len(statistics):
        return math.nan, math.nan
    found = np.sort(score(resampled_sums(statistics, rounds=rounds, seed=seed)))
    tail = (1 - level) / 2
    return float(found[math.floor(tail * (rounds - 1))]), float(found[math.ceil((1 - tail) * (rounds - 1))])


def resampled_sums(statistics: Array, *, rounds: int = ROUNDS, seed: int = 0) -> Array:
    """The sums of ``C`` clusters drawn with replacement, once a round: ``[C, S]`` to ``[R, S]``."""
    generator = np.random.default_rng(seed)
    count = len(statistics)
    found = np.empty((rounds, statistics.shape[1]))
    for number in range(rounds):
        times = np.bincount(generator.integers(count, size=count), minlength=count)  # how often each is drawn, [C]
        found[number] = times @ statistics
    return found


def by_cluster(statistics: Array, clusters: Sequence[Hashable]) -> Array:
    """Rows summed over each cluster, in the order in which clusters first appear: ``[N, S]`` to ``[C, S]``."""
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    found = np.zeros((len(places), statistics.shape[1]))
    np.add.at(found, [places[name] for name in clusters], statistics)
    return found


def share_interval(hits: float, n: int) -> dict[str, Any]:
    """The JSON form of a Wilson interval."""
    return interval_json(wilson(hits, n), "wilson")


def ratio_interval(sums: Sequence[float], weights: Sequence[float]) -> dict[str, Any]:
    """The JSON form of a bootstrap interval of a ratio of sums."""
    return interval_json(bootstrap(sums, weights), "bootstrap")


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable], scale: float = 1.0) -> dict[str, Any]:
    """The JSON form of an interval of a mean: Wilson for plain shares, else a bootstrap over the clusters.

    Args:
        clusters: The cluster of each value. A share is plain when every value has a cluster of its own, or when all
            are right or all wrong: draws of equal values would promise certainty, so each cluster counts as one value.
        scale: What the mean is multiplied with, for example 100.
    """
    n, share = len(set(clusters)), all(value in (0, 1) for value in values)
    if share and (n == len(values) or len(set(values)) == 1):
        return interval_json(wilson(n * sum(values) / max(1, len(values)), n), "wilson", scale)
    statistics = np.column_stack([np.asarray(values, dtype=float), np.ones(len(values))])
    return cluster_interval(statistics, clusters, _ratio, scale)


def cluster_interval(
    statistics: Array, clusters: Sequence[Hashable], score: Callable[[Array], Array], scale: float = 1.0
) -> dict[str, Any]:
    """The JSON form of a bootstrap interval over clusters, of a score as :func:`bootstrap_of` takes it.

    A single cluster tells nothing of others: there is no interval.
    """
    sums = by_cluster(statistics, clusters)
    return interval_json(bootstrap_of(sums, score) if len(sums) > 1 else (math.nan, math.nan), "bootstrap", scale)


def interval_json(interval: tuple[float, float], method: str, scale: float = 1.0) -> dict[str, Any]:
    """The JSON form of an interval; null where there is none."""
    low, high = (None if math.isnan(value) else scale * value for value in interval)
    return {"low": low, "high": high, "level": LEVEL, "method": method}


def mean_table(
    groups: Mapping[str, Sequence[int]], values: Sequence[float], clusters: Sequence[Hashable], scale: float = 1.0
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Means of groups of rows, and their intervals; a group without rows has the mean None."""
    means: dict[str, float | None] = {}
    intervals: dict[str, Any] = {}
    for name, rows in groups.items():
        means[name] = scale * sum(values[row] for row in rows) / len(rows) if rows else None
        if rows:
            intervals[name] = mean_interval([values[row] for row in rows], [clusters[row] for row in rows], scale)
    return means, intervals


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0
) -> dict[str, Any]:
    """The difference of two runs' means over the same rows, with its interval and the share of draws beyond zero.

    Args:
        first, second: Scores of the same rows in the same order.

    Returns:
        ``difference`` (second minus first), ``low``, ``high``, and ``p``, two-sided.
    """
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    statistics = by_cluster(np.column_stack([differences, np.ones(len(differences))]), clusters)
    drawn = _ratio(resampled_sums(statistics, seed=seed))
    low, high = bootstrap_of(statistics, _ratio, seed=seed)
    p = min(1.0, 2 * min(float((drawn <= 0).mean()), float((drawn >= 0).mean())))
    return {"difference": float(differences.mean()), "low": low, "high": high, "level": LEVEL, "p": p}


def mcnemar(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """The exact test whether two runs are right equally often, from the rows on which just one of them is.

    Returns:
        ``only_first``, ``only_second`` and the two-sided ``p``.

    Source:
        McNemar 1947; the exact binomial form.
    """
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    n, fewer = only_first + only_second, min(only_first, only_second)
    logs = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(fewer + 1))
    p = min(1.0, 2 * sum(math.exp(log - n * math.log(2)) for log in logs))
    return {"only_first": only_first, "only_second": only_second, "p": p}


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, corrected so that their whole family errs no more often than one of them.

    Source:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    found, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = least
    return found


def _ratio(sums: Array) -> Array:
    """First column over second; NaN where the second is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(sums[:, 1] != 0, sums[:, 0] / sums[:, 1], np.nan)
    return found
