"""Numbers in files: written, read, sorted and grouped in pieces, as numpy would in memory."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from mmtune.data import diskarray
from mmtune.data.diskarray import DiskArray, Numbers, grouped, in_order, lines_of


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskarray, "_PIECE", 16)
    monkeypatch.setattr(diskarray, "_WAYS", 4)


def _table(folder: Path, lines: Numbers) -> DiskArray:
    table = DiskArray(folder, np.uint64, lines.shape[1])
    for start in range(0, len(lines), 37):
        table.append(lines[start : start + 37])
    return table


def test_what_is_written_is_read(tmp_path: Path) -> None:
    column = DiskArray.full(tmp_path, 50, -1, np.int32)
    column.write(10, np.arange(5))
    column.append(np.empty(0, np.int32))
    column.append(np.array([7]))
    expected = np.full(51, -1, np.int32)
    expected[10:15], expected[50] = np.arange(5), 7
    assert len(column) == 51
    np.testing.assert_array_equal(column[:], expected)
    np.testing.assert_array_equal(column[48:99], expected[48:])
    assert len(column[60:70]) == 0
    np.testing.assert_array_equal(np.concatenate(list(column.pieces())), expected)
    assert [where for where, _ in column.placed()][-1] == slice(48, 51)
    column.mapped()[20] = 9
    assert column[20:21].tolist() == column.part(15, 25)[5:6].tolist() == [9]


def test_nothing_is_left_on_the_disk(tmp_path: Path) -> None:
    gc.collect()  # files that others left open must not be closed in between
    table = _table(tmp_path, np.ones((100, 2), np.uint64))
    assert not list(tmp_path.iterdir())
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    part = table.part(3, 9)
    del table
    gc.collect()
    assert part[:].tolist() == [[1, 1]] * 6
    del part
    if opened is not None:
        assert len(os.listdir("/proc/self/fd")) == opened - 1


@pytest.mark.parametrize("count", [0, 1, 16, 17, 1000])
@pytest.mark.parametrize("highest", [0, 3, 2**64 - 1])
def test_lines_in_order(tmp_path: Path, count: int, highest: int) -> None:
    draw = np.random.default_rng(count)
    lines = draw.integers(0, highest, (count, 3), np.uint64, endpoint=True)
    lines[: count // 2, 0] = 5  # most of them under one number, the rest anywhere
    pieces = list(in_order(_table(tmp_path, lines)))
    found = np.concatenate([np.empty((0, 3), np.uint64), *pieces])
    np.testing.assert_array_equal(found, lines[np.lexsort(lines.T[::-1])])
    assert all(0 < len(piece) <= 16 for piece in pieces)


@pytest.mark.parametrize("width", [1, 2])
def test_groups_across_pieces(tmp_path: Path, width: int) -> None:
    draw = np.random.default_rng(0)
    lines = np.unique(draw.integers(0, 6, (300, 3), np.uint64), axis=0)
    first: dict[tuple[int, ...], list[int]] = {}
    expected = [(line, first.setdefault(tuple(line[:width]), line)) for line in lines.tolist()]
    pieces = [lines[start : start + 7] for start in range(0, len(lines), 7)]
    pairs = [pair for one, begin in grouped(pieces, width) for pair in zip(one.tolist(), begin.tolist(), strict=True)]
    assert pairs == [(line, begin) for line, begin in expected if line is not begin]


def test_columns_side_by_side() -> None:
    found = lines_of(np.array([True, False]), np.array([3, 4]))
    assert (found.tolist(), found.dtype) == ([[1, 3], [0, 4]], np.uint64)
