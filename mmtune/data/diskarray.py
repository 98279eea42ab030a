"""Numbers by row that are too many for memory: in files, written, read and sorted a piece at a time."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Numbers = np.ndarray[Any, np.dtype[Any]]
_PIECE = 1 << 17  # lines that are in memory together
_WAYS = 256  # that a table is cut into at once when it is sorted


class DiskArray:
    """A column ``[N]`` or a table ``[N, width]`` in a file without a name, which is gone with it, or with the process.

    Args:
        folder: On whose disk the file is.
        width: Numbers a line; None for a column.
    """

    def __init__(self, folder: Path, kind: Any = np.int64, width: int | None = None) -> None:
        self.folder, self.kind, self.width = folder, np.dtype(kind), width
        self._file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by the finaliser)
        self._first = self._length = 0
        self._owner: DiskArray | None = None  # whose file it is
        weakref.finalize(self, self._file.close)

    @classmethod
    def full(cls, folder: Path, count: int, value: int, kind: Any = np.int64) -> DiskArray:
        """A column of one number."""
        made = cls(folder, kind)
        for start in range(0, count, _PIECE):
            made.append(np.full(min(_PIECE, count - start), value, made.kind))
        return made

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, where: slice) -> Numbers:
        start, stop, _ = where.indices(self._length)
        count = max(0, stop - start)
        lines: Numbers = np.empty(count if self.width is None else (count, self.width), self.kind)
        if count:
            self._file.seek((self._first + start) * self._line_bytes)
            self._file.readinto(memoryview(lines).cast("B"))
        return lines

    def append(self, lines: Numbers) -> None:
        """Write behind the last line."""
        self.write(self._length, lines)

    def write(self, start: int, lines: Numbers) -> None:
        """Write from a line on.

        Raises:
            OSError: The disk is full.
        """
        left = memoryview(np.ascontiguousarray(lines, self.kind).reshape(-1)).cast("B") if len(lines) else b""
        self._file.seek((self._first + start) * self._line_bytes)
        while left:
            left = left[self._file.write(left) :]
        self._length = max(self._length, start + len(lines))

    def pieces(self) -> Iterator[Numbers]:
        """All lines in order."""
        for start in range(0, self._length, _PIECE):
            yield self[start : start + _PIECE]

    def placed(self) -> Iterator[tuple[slice, Numbers]]:
        """All lines in order, with their places."""
        for start in range(0, self._length, _PIECE):
            lines = self[start : start + _PIECE]
            yield slice(start, start + len(lines)), lines

    def part(self, start: int, stop: int) -> DiskArray:
        """Some lines, in the same file."""
        made = object.__new__(DiskArray)
        place = {"_first": self._first + start, "_length": stop - start, "_owner": self._owner or self}
        made.__dict__ = {**self.__dict__, **place}
        return made

    def mapped(self) -> Numbers:
        """All lines to be read and written in any order; what is in memory of them is the system's to take back."""
        if not self._length:
            return self[:]
        shape = self._length if self.width is None else (self._length, self.width)
        offset = self._first * self._line_bytes
        return np.asarray(np.memmap(self._file, self.kind, "r+", offset=offset, shape=shape))

    @property
    def _line_bytes(self) -> int:
        return self.kind.itemsize * (self.width or 1)


def lines_of(*columns: Numbers) -> Numbers:
    """Columns ``[n]`` side by side, ``[n, width]`` uint64; numbers below zero come last."""
    return np.column_stack([column.astype(np.uint64) for column in columns])


def in_order(table: DiskArray) -> Iterator[Numbers]:
    """The lines of a table in ascending order, in pieces.

    A table that does not fit into memory is cut by value into tables that do.
    """
    yield from _in_order(table, 0)


def _in_order(table: DiskArray, column: int) -> Iterator[Numbers]:
    if len(table) <= _PIECE:
        lines = table[:]
        if len(lines):
            yield lines[np.lexsort(lines.T[::-1])]
        return
    least, most = _bounds(table, column)
    while least == most:  # lines that agree so far
        column += 1
        if column == table.width:
            yield from table.pieces()
            return
        least, most = _bounds(table, column)
    for cut in _cut(table, column, least, most):
        yield from _in_order(cut, column)


def _bounds(table: DiskArray, column: int) -> tuple[int, int]:
    bounds = [(int(lines[:, column].min()), int(lines[:, column].max())) for lines in table.pieces()]
    return min(least for least, _ in bounds), max(most for _, most in bounds)


def _cut(table: DiskArray, column: int, least: int, most: int) -> Iterator[DiskArray]:
    """A table as several, by ranges of a column, each with its lines in their order."""
    ways = min(_WAYS, 2 * len(table) // _PIECE + 1)
    step = (most - least) // ways + 1

    def way(lines: Numbers) -> Numbers:
        return ((lines[:, column] - np.uint64(least)) // np.uint64(step)).astype(np.int64)

    counts = sum(np.bincount(way(lines), minlength=ways) for lines in table.pieces())
    ends = np.cumsum(counts).tolist()
    at = [0, *ends[:-1]]
    cut = DiskArray(table.folder, table.kind, table.width)
    for lines in table.pieces():
        number = way(lines)
        order = np.argsort(number, kind="stable")
        lines, bounds = lines[order], np.searchsorted(number[order], np.arange(ways + 1)).tolist()
        for index in range(ways):
            if bounds[index] < bounds[index + 1]:
                cut.write(at[index], lines[bounds[index] : bounds[index + 1]])
                at[index] += bounds[index + 1] - bounds[index]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield cut.part(start, end)


def grouped(pieces: Iterable[Numbers], width: int = 1) -> Iterator[tuple[Numbers, Numbers]]:
    """Of ordered lines those that do not begin their group, each beside the line that does.

    Args:
        pieces: Lines in order.
        width: Lines that agree in so many first numbers are a group.
    """
    before: Numbers | None = None
    for piece in pieces:
        lines = piece if before is None else np.concatenate([before, piece])
        begins = np.ones(len(lines), bool)
        begins[1:] = (lines[1:, :width] != lines[:-1, :width]).any(axis=1)
        first = np.maximum.accumulate(np.where(begins, np.arange(len(lines)), 0))
        yield lines[~begins], lines[first[~begins]]
        before = lines[first[-1:]]
