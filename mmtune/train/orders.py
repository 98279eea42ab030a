"""The row orders of the original LLaVA: neighbours of equal length and, if asked, of equal modality.

Rewritten from their description, equal to the original index by index for equal random generators.

Source:
    LLaVA-1.5 (arXiv 2310.03744), training with ``group_by_modality_length``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def length_grouped(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """Rows so that each global batch holds rows of near length, and its shares are of near total length.

    Args:
        lengths: Of each row.
        batch_size: Rows of one process and micro-batch.
        world_size: Processes times accumulated micro-batches.
        generator: Of the shuffle; torch's global one when absent.
    """
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    found: list[int] = []
    for chunk in cut(shuffled, world_size * batch_size):
        longest_first = sorted(chunk, key=lambda row: lengths[row], reverse=True)
        for share in _even_shares(longest_first, lengths, world_size):
            found += share
    return found


def modality_grouped(
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    generator: torch.Generator,
    within: torch.Generator | None = None,
) -> list[int]:
    """Rows so that each global batch is either all with media or all without, and of near length.

    Args:
        lengths: Of each row, negative where it has no media; never zero.
        generator: Of the order of the global batches.
        within: Of the shuffles before rows are grouped by length; torch's global one when absent.

    Raises:
        ValueError: A length of zero belongs to neither group.
    """
    if 0 in lengths:
        raise ValueError("a row of length 0 has no modality")
    if all(length > 0 for length in lengths) or all(length < 0 for length in lengths):
        return length_grouped([abs(length) for length in lengths], batch_size, world_size, within)
    complete: list[list[int]] = []
    rest: list[int] = []
    for sign in (1, -1):
        rows = [row for row, length in enumerate(lengths) if length * sign > 0]
        order = length_grouped([abs(lengths[row]) for row in rows], batch_size, world_size, within)
        chunks = cut([rows[index] for index in order], world_size * batch_size)
        complete += chunks[:-1]
        rest += chunks[-1]
    chunks = [complete[index] for index in torch.randperm(len(complete), generator=generator).tolist()]
    if rest:
        chunks.append(sorted(rest))
    return [row for chunk in chunks for row in chunk]


def _even_shares(rows: list[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Deal rows, longest first, so that each share has equally many and about the same total length."""
    if len(rows) % count:
        return [rows[start::count] for start in range(count)]
    size = len(rows) // count
    shares: list[list[int]] = [[] for _ in range(count)]
    totals = [0.0] * count
    for row in rows:
        shortest = totals.index(min(totals))
        shares[shortest].append(row)
        totals[shortest] += lengths[row]
        if len(shares[shortest]) == size:
            totals[shortest] = float("inf")
    return shares


def cut(rows: Sequence[int], size: int) -> list[list[int]]:
    """Rows in batches of ``size``; the last may be smaller."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
