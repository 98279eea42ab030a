"""Which rows are kept, how often, and which split they go to: decided by hashes of a seed, never by order or chance."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmtune.core.errors import UsageError

Numbers = np.ndarray[Any, np.dtype[Any]]
_NAMES = {"validation": "val", "valid": "val", "dev": "val"}
_PIECE = 1 << 22  # numbers that are looked at together


def split_name(name: str) -> str:
    """The one name of a split: ``validation``, ``valid`` and ``dev`` are ``val``."""
    return _NAMES.get(name.strip(), name.strip())


def mix(seed: int, values: Numbers) -> Numbers:
    """Numbers that order ``values`` at random, the same for the same seed, uint64.

    Source:
        The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    """
    start = np.uint64(int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "big"))
    with np.errstate(over="ignore"):
        mixed = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def draw(total: int, count: int, seed: int) -> Numbers:
    """``count`` of the numbers below ``total``, in order."""
    chosen, ranks = np.empty(0, np.int64), np.empty(0, np.uint64)
    for start in range(0, total, _PIECE):
        numbers = np.arange(start, min(start + _PIECE, total))
        chosen, ranks = np.concatenate([chosen, numbers]), np.concatenate([ranks, mix(seed, numbers)])
        if len(chosen) > count:
            best = np.argpartition(ranks, count - 1)[:count]
            chosen, ranks = chosen[best], ranks[best]
    return np.sort(chosen)


def parse_split(text: str | None) -> dict[str, float] | None:
    """``train=0.98,val=0.02`` as names and fractions; None when nothing is asked for.

    Raises:
        UsageError: Anything else, or fractions that do not add up to 1.
    """
    if text is None:
        return None
    fix = "write for example --split train=0.98,val=0.02"
    found: dict[str, float] = {}
    for piece in text.split(","):
        name, equals, number = piece.strip().partition("=")
        name = split_name(name)
        try:
            fraction = float(number)
        except ValueError:
            fraction = -1.0
        if not equals or not name.isidentifier() or not 0.0 <= fraction <= 1.0 or name in found:
            raise UsageError(f"The split '{text}' cannot be understood at '{piece}'.", where="--split", fix=fix)
        found[name] = fraction
    if abs(sum(found.values()) - 1.0) > 1e-6:
        raise UsageError(f"The fractions of '{text}' add up to {sum(found.values()):g}.", where="--split", fix=fix)
    return found


def components(owners: Numbers, keys: Numbers, count: int) -> Numbers:
    """For each of ``count`` rows the first row that it is connected to by keys in common.

    Args:
        owners: Row of each key, ``[K]``.
        keys: Keys, ``[K]``.
    """
    _, key = np.unique(keys, return_inverse=True)
    label = np.arange(count)
    while True:
        least = np.full(int(key.max(initial=-1)) + 1, count)
        np.minimum.at(least, key, label[owners])
        new = label.copy()
        np.minimum.at(new, owners, least[key])
        new = new[new]
        if np.array_equal(new, label):
            return label
        label = new


def assign(groups: Numbers, names: Numbers, fractions: dict[str, float], seed: int) -> Numbers:
    """The split of each row, as an index into ``fractions``: rows of one group stay together.

    In an order drawn by the seed, groups fill the smaller splits as far as they fit; the largest split takes the rest.
    Each split gets a group while there are enough.

    Args:
        groups: Group of each row, as the index of one of its rows, ``[R]``.
        names: What each row is called wherever it stands, by which groups are drawn, ``[R]`` uint64.
    """
    unique, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    called = np.full(len(unique), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(called, member, names)
    order = np.lexsort((called, mix(seed, called)))
    splits = list(fractions)
    largest = max(splits, key=lambda name: fractions[name])
    wanted = {name: round(fractions[name] * len(groups)) for name in splits if name != largest and fractions[name] > 0}
    found = np.full(len(unique), splits.index(largest), np.int8)
    left, taken = dict(wanted), dict.fromkeys(wanted, 0)
    for group in order.tolist():
        size = int(sizes[group])
        for name in wanted:
            if size <= left[name]:
                left[name] -= size
                taken[name] += 1
                found[group] = splits.index(name)
                break
        if not any(left.values()):
            break
    _fill_empty(found, [name for name in wanted if not taken[name]], sizes[order], order, splits, largest)
    return found[member]


def _fill_empty(
    found: Numbers, empty: Sequence[str], sizes: Numbers, order: Numbers, splits: list[str], largest: str
) -> None:
    """Give each empty split the smallest group of the largest split, which keeps one."""
    for name in empty:
        rest = [place for place in np.argsort(sizes, kind="stable") if found[order[place]] == splits.index(largest)]
        if len(rest) > 1:
            found[order[rest[0]]] = splits.index(name)
