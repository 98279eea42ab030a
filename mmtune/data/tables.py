"""Tables of samples: the rows in memory or on disk, and where their media are when a row is read."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

from mmtune.data.columns import MovedPath
from mmtune.data.download import fetch
from mmtune.data.ledger import Rejected
from mmtune.data.media import MediaLookup
from mmtune.data.sample import Media, Sample, Turn


class Rows(Protocol):
    """Anything that holds samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class Places:
    """Where media that are not where they were, or are somewhere on the network, are found when a row is read.

    Args:
        lookup: Used for a file of prepared data that has moved.
        cache: Folder that URLs are fetched into.
        allow_urls: Whether URLs are fetched at all.
    """

    lookup: MediaLookup | None = None
    cache: str | None = None
    allow_urls: bool = False

    def settle(self, sample: Sample) -> Sample:
        """The sample with media that can be opened.

        Raises:
            DataError: A file that is not found under its name any more, or a URL that may not or cannot be fetched.
        """
        if not any(self._unsettled(item) for item in sample.media):
            return sample
        turns = []
        for turn in sample.turns:
            parts = tuple(
                Media(part.modality, self._place(part.uri, sample)) if isinstance(part, Media) else part
                for part in turn.parts
            )
            turns.append(Turn(turn.role, parts))
        return replace(sample, turns=tuple(turns))

    @staticmethod
    def _unsettled(item: Media) -> bool:
        return isinstance(item.uri, MovedPath) or str(item.uri)[:8].lower().startswith(("http://", "https://"))

    def _place(self, uri: Any, sample: Sample) -> Any:
        if not isinstance(uri, str) or uri.startswith("data:"):
            return uri
        if uri[:8].lower().startswith(("http://", "https://")):
            return fetch(str(uri), self.cache, allowed=self.allow_urls, where=f"row '{sample.id}'")
        if isinstance(uri, MovedPath):
            if self.lookup is None or os.path.exists(uri):
                return str(uri)
            return self.lookup.find(uri.uri).path
        return uri


@dataclass(frozen=True)
class SampleTable(Sequence[Sample]):
    """Samples by index. Picklable, and cheap to share with data-loader workers.

    Attributes:
        fingerprint: Hash of the content, the same wherever the data lies.
        sources: The files or folders it was read from.
        validation: The validation split that came with it, or None.
        rejected: Rows of raw files that could not be used.
    """

    rows: Rows
    fingerprint: str
    sources: tuple[str, ...]
    validation: SampleTable | None = None
    rejected: tuple[Rejected, ...] = ()
    places: Places = field(default_factory=Places)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.places.settle(self.rows[index % len(self)])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


class PackedRows:
    """Samples as JSON in one block of bytes: small, and forked workers share it without copying."""

    def __init__(self, samples: Iterator[Sample], limit: int | None = None) -> None:
        pieces, self._ends, end = [], array("q"), 0
        for sample in islice(samples, limit):
            piece = json.dumps(sample.to_json(), ensure_ascii=False).encode()
            end += len(piece)
            pieces.append(piece)
            self._ends.append(end)
        self._block = b"".join(pieces)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Sample:
        start = self._ends[index - 1] if index else 0
        return Sample.from_json(json.loads(self._block[start : self._ends[index]]))


@dataclass(frozen=True)
class JoinedRows:
    """The rows of several tables one after another."""

    tables: tuple[Rows, ...]

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables)

    def __getitem__(self, index: int) -> Sample:
        for table in self.tables:
            if index < len(table):
                return table[index]
            index -= len(table)
        raise IndexError(index)


@dataclass(frozen=True)
class FirstRows:
    """The first rows of a table."""

    table: Rows
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.table))

    def __getitem__(self, index: int) -> Sample:
        return self.table[index]
