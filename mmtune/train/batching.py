"""Which rows share a micro-batch: a pure function of the epoch's order, the rows' lengths and a seed.

Units of lengths are positions of the language model; media are counted apart, in positions of their encoders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mmtune.train.orders import cut, modality_grouped

Grouping = Literal["none", "length", "modality"]
_SORTED_BATCHES = 100  # batches that are sorted together: enough for little padding, few enough to stay random


@dataclass(frozen=True)
class RowLengths:
    """How long each row is, known before any medium is opened.

    Attributes:
        positions: ``[N]`` positions of the language model, placeholders of media included.
        targets: ``[N]`` positions that are trained.
        media: ``[N]`` positions that encoders read for the row.
        words: ``[N]`` words as the original LLaVA counts them, negative for rows without media.
    """

    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    media: NDArray[np.int64]
    words: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Batching:
    """How an epoch's rows become micro-batches. How many processes share one does not change what is in it.

    Args:
        batch_size: Rows of a micro-batch over all processes; with ``tokens`` not used.
        accumulation: Micro-batches of a step.
        grouping: ``length`` puts rows of near length together, ``modality`` is the original LLaVA's order.
        tokens: Most positions of a micro-batch, padding included, in place of ``batch_size``.
        lengths: Of all rows; needed for grouping and for ``tokens``.
        packed: Rows stand one behind the other, so that ``tokens`` holds as many as fit without padding.
    """

    batch_size: int
    accumulation: int = 1
    grouping: Grouping = "none"
    tokens: int | None = None
    lengths: RowLengths | None = None
    seed: int = 0
    packed: bool = False

    @property
    def varies(self) -> bool:
        """Whether epochs differ in their number of micro-batches."""
        return self.tokens is not None

    def batches(self, order: Sequence[int], epoch: int) -> list[list[int]]:
        """All micro-batches of an epoch.

        Args:
            order: The rows of the epoch, shuffled.
        """
        if self.grouping == "none" and self.tokens is None:
            return cut(order, self.batch_size)
        lengths = self._known_lengths()
        if self.grouping == "modality":
            return cut(self._as_original(order, lengths, epoch), self.batch_size)
        rows = self._sorted_in_parts(order, lengths) if self.grouping == "length" else order
        if self.tokens is None:
            found = cut(rows, self.batch_size)
        else:
            found = list(_within(rows, lengths, self.tokens, self.packed))
        return found if self.grouping == "none" else self._shuffled(found, lengths, epoch)

    def _known_lengths(self) -> RowLengths:
        if self.lengths is None:
            raise ValueError("batches by length need the lengths of all rows")
        return self.lengths

    def _as_original(self, order: Sequence[int], lengths: RowLengths, epoch: int) -> list[int]:
        found = modality_grouped(
            lengths.words[list(order)].tolist(),
            self.batch_size,
            self.accumulation,
            torch.Generator().manual_seed(self._seed_of(epoch)),
            torch.Generator().manual_seed(self._seed_of(epoch) + 1),
        )
        return [order[index] for index in found]

    def _sorted_in_parts(self, order: Sequence[int], lengths: RowLengths) -> list[int]:
        """Long stretches of the shuffled rows, each sorted with its longest row first."""
        rows = np.asarray(order, dtype=np.int64)
        size = self.batch_size
        if self.tokens is not None:
            size = max(1, int(self.tokens / max(1.0, float(lengths.positions[rows].mean()))))
        size *= _SORTED_BATCHES
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [row for part in parts for row in part[np.argsort(-lengths.positions[part], kind="stable")].tolist()]

    def _shuffled(self, batches: list[list[int]], lengths: RowLengths, epoch: int) -> list[list[int]]:
        """In random order; the first epoch begins with the largest, to find out at once if it fits."""
        generator = torch.Generator().manual_seed(self._seed_of(epoch))
        mixed = [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
        if epoch == 0:
            largest = max(range(len(mixed)), key=lambda index: _area(mixed[index], lengths))
            mixed.insert(0, mixed.pop(largest))
        return mixed

    def _seed_of(self, epoch: int) -> int:
        return self.seed * 1_000_003 + epoch + 500_000_000  # apart from the seeds of the rows' own order


def padding_share(batches: Sequence[Sequence[int]], positions: NDArray[np.int64]) -> float:
    """The share of all positions, from 0 to 1, that only fill rows up to the longest one of their micro-batch."""
    computed = sum(len(batch) * int(positions[list(batch)].max()) for batch in batches if batch)
    used = sum(int(positions[list(batch)].sum()) for batch in batches if batch)
    return 1.0 - used / computed if computed else 0.0


def _within(rows: Sequence[int], lengths: RowLengths, tokens: int, packed: bool) -> Iterator[list[int]]:
    """Consecutive rows as long as neither the language model nor the encoders read more than ``tokens`` positions."""
    positions, media = lengths.positions, lengths.media
    batch: list[int] = []
    longest = seen = total = 0
    for row in rows:
        length = int(positions[row])
        longest, seen, total = max(longest, length), seen + int(media[row]), total + length
        size = total if packed else (len(batch) + 1) * longest
        if batch and (size > tokens or seen > tokens):
            yield batch
            batch, longest, seen, total = [], length, int(media[row]), length
        batch.append(row)
    if batch:
        yield batch


def _area(batch: Sequence[int], lengths: RowLengths) -> int:
    return len(batch) * int(lengths.positions[list(batch)].max())
