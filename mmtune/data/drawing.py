"""Which rows are kept and which split they go to: decided by hashes of a seed, never by order or chance."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence

from mmtune.core.errors import UsageError

_NAMES = {"validation": "val", "valid": "val", "dev": "val"}


def rank(seed: int, name: str) -> int:
    """A number that orders names at random, the same for the same seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16], "big")


def draw(total: int, count: int, seed: int) -> set[int]:
    """``count`` of the numbers below ``total``."""
    return set(heapq.nsmallest(count, range(total), key=lambda number: rank(seed, f"row {number}")))


def parse_split(text: str | None) -> dict[str, float]:
    """``train=0.98,val=0.02`` as names and fractions; all rows are ``train`` by default.

    Raises:
        UsageError: Anything else, or fractions that do not add up to 1.
    """
    if text is None:
        return {"train": 1.0}
    fix = "write for example --split train=0.98,val=0.02"
    found: dict[str, float] = {}
    for piece in text.split(","):
        name, equals, number = piece.strip().partition("=")
        name = _NAMES.get(name.strip(), name.strip())
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


def assign(ids: Sequence[str], fractions: dict[str, float], seed: int) -> dict[str, str]:
    """The split of each id: rows with one id stay together, and each split gets an id while there are enough."""
    ordered = sorted(set(ids), key=lambda name: (rank(seed, name), name))
    wanted = [name for name, fraction in fractions.items() if fraction > 0]
    counts = {name: round(fractions[name] * len(ordered)) for name in wanted}
    if len(ordered) >= len(wanted):
        counts = {name: max(1, count) for name, count in counts.items()}
    largest = max(wanted, key=lambda name: fractions[name])
    counts[largest] += len(ordered) - sum(counts.values())
    found, start = {}, 0
    for name in wanted:
        found.update(dict.fromkeys(ordered[start : start + counts[name]], name))
        start += counts[name]
    return found
