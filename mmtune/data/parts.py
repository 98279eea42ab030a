"""Checked rows on their way to shards: small files, each made by one process, kept until all is decided.

A part is two files: the rows that can be used as an Arrow table, and a JSON with everything else, which is written
last and so tells that the part is whole. A preparation that was killed goes on after the parts that are whole.
"""

from __future__ import annotations

import gc
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mmtune.data.columns import WORKING, rows_at, table_of
from mmtune.data.intake import Accepted, Judge
from mmtune.data.ledger import Rejected
from mmtune.data.lengths import Lengths
from mmtune.data.reading import RawRow

_EMBEDDED_BYTES = 1 << 28
Block = Sequence[tuple[int, int, RawRow]]
"""(source, number over all sources, row)"""


@dataclass(frozen=True)
class Part:
    """Some rows in the order of their numbers."""

    table: pa.Table
    rejected: Sequence[Rejected]
    warnings: Sequence[Mapping[str, Any]]  # {"row", "source", "id", "code", "text"}
    rules: Counter[str] = field(default_factory=Counter)


class Parts(Protocol):
    """Parts that can be gone through again and again, in the order of their rows."""

    def __iter__(self) -> Iterator[Part]: ...


@dataclass(frozen=True)
class PartMaker:
    """Makes parts; picklable.

    Attributes:
        roots: Folders that media paths are written relative to.
        model: Checkpoint that measures rows, if any.
    """

    judge: Judge
    folder: Path
    roots: Sequence[str]
    model: str | None

    def make(self, number: int, block: Block) -> int:
        """Check the rows of a block and write them; returns how many they were."""
        with _without_collector():
            self._make(number, block)
        return len(block)

    def _make(self, number: int, block: Block) -> None:
        roots = [[root.folder for root in source.lookup.roots] for source in self.judge.sources]
        rejected: list[dict[str, Any]] = []
        warnings: list[dict[str, Any]] = []
        rules: Counter[str] = Counter()
        path = str(_part(self.folder, number, ".arrow"))
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, WORKING) as writer:
            for accepted in self._accepted(block, rejected):
                writer.write_table(table_of(accepted, self.roots, roots))
                warnings += [entry for row in accepted for entry in _entries(row)]
                rules.update(found.rule for row in accepted for found in row.found)
        rest = {"rejected": rejected, "warnings": warnings, "rules": rules}
        partial = _part(self.folder, number, ".partial")
        partial.write_text(json.dumps(rest), encoding="utf-8")
        os.replace(partial, _part(self.folder, number, ".json"))

    def _accepted(self, block: Block, rejected: list[dict[str, Any]]) -> Iterator[list[Accepted]]:
        """The rows that can be used, as many at once as their embedded media fit into memory; notes the others."""
        lengths, rows, size = _lengths(self.model), [], 0
        for origin, place, row in block:
            judged = self.judge.judge(origin, place, row, lengths)
            if not isinstance(judged, Accepted):
                rejected.append(judged.to_json())
                continue
            rows.append(judged)
            size += sum(len(facts.content or b"") for facts in judged.facts)
            if size >= _EMBEDDED_BYTES:
                yield rows
                rows, size = [], 0
        yield rows


def _part(folder: Path, number: int, ending: str) -> Path:
    return folder / f"{number:07d}{ending}"


@contextmanager
def _without_collector() -> Iterator[None]:
    """Leave out the search for cycles: rows have none, and going through them time and again takes a sixth as long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@lru_cache(maxsize=1)
def _lengths(model: str | None) -> Lengths | None:
    return Lengths.of(model)


def _entries(row: Accepted) -> Iterator[dict[str, Any]]:
    for code, text in row.warnings:
        yield {"source": row.sample.source, "id": row.sample.id, "code": code, "text": text, "row": row.number}


class FolderParts:
    """The parts in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, number: int) -> bool:
        """Whether a part is there; its list is written last."""
        return _part(self.folder, number, ".json").is_file()

    def is_whole(self, number: int) -> bool:
        """Whether a part that was found can be read: when the power fails, files may be cut."""
        if not self.has(number):
            return False
        try:
            json.loads(_part(self.folder, number, ".json").read_text(encoding="utf-8"))
            with pa.memory_map(str(_part(self.folder, number, ".arrow"))) as file:
                pa.ipc.open_file(file)
        except (OSError, ValueError):  # Arrow's own errors are among them
            return False
        return True

    def __iter__(self) -> Iterator[Part]:
        for number in takewhile(self.has, count()):
            rest = json.loads(_part(self.folder, number, ".json").read_text(encoding="utf-8"))
            with pa.memory_map(str(_part(self.folder, number, ".arrow"))) as file:
                table = pa.ipc.open_file(file).read_all()
                rejected = [Rejected.from_json(row) for row in rest["rejected"]]
                yield Part(table, rejected, rest["warnings"], Counter(rest["rules"]))

    def num_bytes(self) -> int:
        """What the tables take on disk."""
        return sum(_part(self.folder, number, ".arrow").stat().st_size for number in takewhile(self.has, count()))


class MergedParts:
    """The parts of several slices as one preparation would have made them: in the order of the rows."""

    def __init__(self, slices: Iterable[Parts], window: int = 1024) -> None:
        self._slices = list(slices)
        self._window = window * len(self._slices)

    def __iter__(self) -> Iterator[Part]:
        streams = [_Stream(iter(parts)) for parts in self._slices]
        limit = 0
        while any(stream.alive for stream in streams):
            limit += self._window
            pieces = [stream.until(limit) for stream in streams]
            table = pa.concat_tables([piece.table for piece in pieces])
            order = np.argsort(table["row"].to_numpy(), kind="stable")
            yield Part(
                rows_at(table, order, table["bytes"].to_numpy()),
                sorted((row for piece in pieces for row in piece.rejected), key=lambda row: row.row),
                sorted((entry for piece in pieces for entry in piece.warnings), key=lambda entry: entry["row"]),
                sum((piece.rules for piece in pieces), Counter()),
            )


class _Stream:
    """The rows of one slice, taken up to a number."""

    def __init__(self, parts: Iterator[Part]) -> None:
        self._parts = parts
        self._tables: list[pa.Table] = []
        self._rejected: list[Rejected] = []
        self._warnings: list[Mapping[str, Any]] = []
        self._seen = -1
        self.alive = True

    def until(self, limit: int) -> Part:
        """All that is left of the rows below ``limit``."""
        rules: Counter[str] = Counter()
        while self.alive and self._seen < limit - 1:
            part = next(self._parts, None)
            if part is None:
                self.alive = False
                break
            self._tables.append(part.table)
            self._rejected += part.rejected
            self._warnings += part.warnings
            rules += part.rules
            last = int(part.table["row"][-1].as_py()) if part.table.num_rows else -1
            self._seen = max([self._seen, last, *(row.row for row in part.rejected[-1:])])
        table = pa.concat_tables(self._tables) if self._tables else WORKING.empty_table()
        cut = int(np.searchsorted(table["row"].to_numpy(), limit))
        rejected = [row for row in self._rejected if row.row < limit]
        warnings = [entry for entry in self._warnings if entry["row"] < limit]
        self._tables = [table.slice(cut)] if cut < table.num_rows else []
        self._rejected = self._rejected[len(rejected) :]
        self._warnings = self._warnings[len(warnings) :]
        self.alive = self.alive or bool(self._tables or self._rejected)
        return Part(table.slice(0, cut), rejected, warnings, rules)
