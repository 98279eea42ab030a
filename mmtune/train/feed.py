"""Batches in an order that is a pure function of seed and step, so that a run goes on at any step at once."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample
from mmtune.model.encoding import Batch, Encoded, packed
from mmtune.model.processing import MMTuneProcessor
from mmtune.train.batching import Batching
from mmtune.train.team import share_of

__all__ = ["Encoding", "Feed", "Mixture", "Rejected"]


class Table(Protocol):
    """A sequence of samples that are read one at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and why."""

    id: str
    source: str
    error: DataError


@dataclass(frozen=True)
class MicroBatch:
    """The usable rows of a micro-batch, and what happened to the others.

    Attributes:
        batch: None when no row is usable.
        truncated: Rows that were cut at the end.
        dropped_turns: Leading turns of the assistant that were left out.
    """

    batch: Batch | None
    rejected: list[Rejected]
    truncated: int = 0
    dropped_turns: int = 0


class Mixture:
    """Several tables as one, each as often as its weight says.

    A weight of 2.5 takes every row twice and a fresh half of them a third time in each epoch.
    """

    def __init__(self, tables: Sequence[Table], weights: Sequence[float], seed: int) -> None:
        self._tables = list(tables)
        self._counts = [max(1, round(len(table) * weight)) for table, weight in zip(tables, weights, strict=True)]
        self._starts = [sum(len(table) for table in tables[:index]) for index in range(len(tables))]
        self._seed = seed
        self.epoch_size = sum(self._counts)

    def order(self, epoch: int) -> list[int]:
        """The rows of an epoch, shuffled, as indexes into :meth:`row`."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        chosen: list[torch.Tensor] = []
        for table, count, start in zip(self._tables, self._counts, self._starts, strict=True):
            whole, rest = divmod(count, len(table))
            chosen += [torch.arange(len(table)) + start] * whole
            if rest:
                chosen.append(torch.randperm(len(table), generator=generator)[:rest] + start)
        everything = torch.cat(chosen)
        return everything[torch.randperm(len(everything), generator=generator)].tolist()

    def __len__(self) -> int:
        return sum(len(table) for table in self._tables)

    def row(self, index: int) -> Sample:
        """The sample behind an index."""
        for table, start in zip(reversed(self._tables), reversed(self._starts), strict=True):
            if index >= start:
                return table[index - start]
        raise IndexError(index)


class Encoding(Dataset):  # type: ignore[type-arg]
    """Rows as encoded samples; a row that cannot be used comes as :class:`Rejected`.

    Args:
        keep_bytes: Prepared media to keep in memory, so that later epochs need not open them again.
        packing: Rows of a micro-batch stand one behind the other.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: MMTuneProcessor,
        options: Mapping[str, Any],
        keep_bytes: int = 0,
        *,
        packing: bool = False,
    ) -> None:
        self._packing = packing
        self._mixture = mixture
        self._processor = processor
        self._options = dict(options)
        self._kept: dict[int, Encoded] = {}
        self.keep_bytes = self._bytes_left = keep_bytes

    def __len__(self) -> int:
        return len(self._mixture)

    def __getitem__(self, index: int) -> Encoded | Rejected:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Encoded | Rejected]:
        """The rows of a micro-batch; what is not kept from before is opened and prepared together."""
        fresh = {index: self._mixture.row(index) for index in indices if index not in self._kept}
        made = dict(zip(fresh, self._processor.encode_all(list(fresh.values()), **self._options), strict=True))
        return [self._kept[index] if index in self._kept else self._take(index, fresh, made) for index in indices]

    def _take(
        self, index: int, fresh: Mapping[int, Sample], made: Mapping[int, Encoded | DataError]
    ) -> Encoded | Rejected:
        encoded = made[index]
        if isinstance(encoded, DataError):
            return Rejected(fresh[index].id, fresh[index].source, encoded)
        size = _num_bytes(encoded)
        if size <= self._bytes_left:
            self._bytes_left -= size
            self._kept[index] = encoded
        return encoded

    def collate(self, rows: Sequence[Encoded | Rejected]) -> MicroBatch:
        """Put rows together."""
        usable = [row for row in rows if isinstance(row, Encoded)]
        rejected = [row for row in rows if isinstance(row, Rejected)]
        batch = self._processor.collate(usable) if usable else None
        return MicroBatch(
            packed(batch) if batch is not None and self._packing else batch,
            rejected,
            truncated=sum(row.truncated > 0 for row in usable),
            dropped_turns=sum(row.dropped_turns for row in usable),
        )


def _num_bytes(encoded: Encoded) -> int:
    media = sum(tensor.nbytes for items in encoded.media.values() for item in items for tensor in item.values())
    return media + 16 * len(encoded.input_ids)  # two lists of references


@dataclass
class Feed:
    """Steps of micro-batches over epochs, as one of several processes sees them.

    Args:
        batching: How rows become micro-batches; a step has ``accumulation`` of them, an epoch's last one what is left.
        rank: Which of ``size`` processes this is; together they do the steps of one.
    """

    encoding: Encoding
    mixture: Mixture
    batching: Batching
    workers: int
    pin_memory: bool = False
    rank: int = 0
    size: int = 1
    _counts: dict[int, int] = field(default_factory=dict, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch, the last one included; with batches by tokens others differ a little."""
        return self.steps_of(0)

    def steps_of(self, epoch: int) -> int:
        """Steps of an epoch."""
        key = epoch if self.batching.varies else 0
        if key not in self._counts:
            self._counts[key] = -(-len(self.micro_batches(key)) // self.batching.accumulation)
        return self._counts[key]

    def total_steps(self, epochs: float) -> int:
        """Steps of so many epochs."""
        whole = math.floor(epochs)
        rest = epochs - whole
        if not self.batching.varies:
            return math.ceil(epochs * self.steps_of(0))
        return sum(map(self.steps_of, range(whole))) + (math.ceil(rest * self.steps_of(whole)) if rest else 0)

    def place_of(self, step: int) -> tuple[int, int]:
        """Epoch and step within it of a step of the run, all counted from 0."""
        epoch = 0
        if not self.batching.varies:
            return divmod(step, self.steps_of(0))
        while step >= self.steps_of(epoch):
            step, epoch = step - self.steps_of(epoch), epoch + 1
        return epoch, step

    def epochs_after(self, steps: int) -> float:
        """Epochs that so many steps are."""
        epoch, rest = self.place_of(steps)
        return epoch + rest / self.steps_of(epoch)

    def steps(self, first: int) -> Generator[list[MicroBatch], None, None]:
        """Endless steps from one on (counted from 0), each a list of collated micro-batches."""
        epoch, offset = self.place_of(first)
        length = self.batching.accumulation
        while True:
            batches = self.micro_batches(epoch)
            starts = range(offset * length, len(batches), length)
            shares = [share_of(batches[start : start + length], self.rank, self.size) for start in starts]
            loaded = self._load([batch for share in shares for batch in share])
            for share in shares:
                yield [next(loaded) for _ in share]
            epoch, offset = epoch + 1, 0

    def micro_batches(self, epoch: int) -> list[list[int]]:
        """The rows of every micro-batch of an epoch, of all processes together."""
        return self.batching.batches(self.mixture.order(epoch), epoch)

    def _load(self, batches: Sequence[Sequence[int]]) -> Iterator[MicroBatch]:
        if self.workers == 0:
            for batch in batches:
                yield self.encoding.collate(self.encoding.__getitems__(batch))
            return
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizer's threads do not survive a fork
        yield from DataLoader(
            self.encoding,
            batch_sampler=[list(batch) for batch in batches],
            collate_fn=self.encoding.collate,
            num_workers=self.workers,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # of its own: making an iterator draws from it
            pin_memory=self.pin_memory,
            prefetch_factor=4,
        )


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches the whole process group; only the main process decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
