"""Which rows are drawn, and what splits are asked for: decided by hashes of a seed, never by order or chance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from mmtune.core.errors import UsageError
from mmtune.data.diskarray import Numbers

_NAMES = {"validation": "val", "valid": "val", "dev": "val"}
_PIECE = 1 << 20  # numbers that are looked at together
_AHEAD = 1 << 14
_TOP_BITS = 16


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


def drawn(total: int, count: int, seed: int) -> Callable[[int], bool]:
    """Whether a number below ``total`` is one of the ``count`` that are drawn; quick for numbers in order."""

    def ranks() -> Iterator[Numbers]:
        return (mix(seed, np.arange(start, min(start + _PIECE, total))) for start in range(0, total, _PIECE))

    limit = rank_limit(ranks, count)
    start, chosen = 0, b""

    def among(number: int) -> bool:
        nonlocal start, chosen
        if not start <= number < start + len(chosen):
            start = number
            chosen = (mix(seed, np.arange(start, start + _AHEAD)) <= limit).tobytes()
        return bool(chosen[number - start])

    return among


def rank_limit(ranks: Callable[[], Iterator[Numbers]], count: int) -> np.uint64:
    """The largest of the ``count`` smallest numbers.

    Args:
        ranks: All numbers, uint64, in pieces; gone through twice.
    """
    counts = np.zeros(1 << _TOP_BITS, np.int64)
    shift = np.uint64(64 - _TOP_BITS)
    for piece in ranks():
        counts += np.bincount((piece >> shift).astype(np.int64), minlength=len(counts))
    ends = np.cumsum(counts)
    top = int(np.searchsorted(ends, count))
    close = np.concatenate([piece[piece >> shift == np.uint64(top)] for piece in ranks()])
    place = count - int(ends[top] - counts[top]) - 1
    return np.uint64(np.partition(close, place)[place])


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
