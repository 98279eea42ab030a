"""What is decided over all rows: drawn rows, groups of rows, and that none of it grows with the number of rows."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmtune.data import diskarray, drawing, splitting
from mmtune.data.columns import WORKING
from mmtune.data.deciding import decide
from mmtune.data.diskarray import DiskArray
from mmtune.data.drawing import drawn, mix, rank_limit
from mmtune.data.parts import Part
from mmtune.data.prepare import prepare
from mmtune.data.splitting import assign, components
from tests.data.rows import talk, write_json


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, size in (
        (diskarray, "_PIECE", 512), (diskarray, "_WAYS", 5), (splitting, "_STEP", 500), (drawing, "_PIECE", 1000),
        (drawing, "_AHEAD", 70),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, size)


def _column(folder: Path, values: Any, kind: Any = np.int64) -> DiskArray:
    column = DiskArray(folder, kind)
    column.append(np.asarray(values))
    return column


@pytest.mark.parametrize(("total", "count"), [(1, 1), (5000, 1), (5000, 1234), (5000, 4999), (5000, 5000)])
def test_drawn_numbers_have_the_smallest_ranks(small_pieces: None, total: int, count: int) -> None:
    among = drawn(total, count, 3)
    ranks = mix(3, np.arange(total))
    assert [number for number in range(total) if among(number)] == np.sort(np.argsort(ranks)[:count]).tolist()
    assert among(0) == (0 in np.argsort(ranks)[:count])  # also out of order
    assert rank_limit(lambda: iter(np.array_split(ranks, 3)), count) == np.sort(ranks)[count - 1]


@pytest.mark.parametrize("kind", ["chain", "drawn", "none", "star"])
def test_components_are_named_by_their_first_row(small_pieces: None, tmp_path: Path, kind: str) -> None:
    count = 3000
    pairs = {
        "chain": np.column_stack([np.arange(count - 1), np.arange(1, count)])[::-1],
        "drawn": np.random.default_rng(0).integers(0, count, (1400, 2)),
        "none": np.empty((0, 2), np.int64),
        "star": np.column_stack([np.full(count, 7), np.arange(count)]),
    }[kind]
    links = DiskArray(tmp_path, np.int64, 2)
    links.append(pairs)
    expected = list(range(count))

    def first(row: int) -> int:
        while expected[row] != row:
            row = expected[row]
        return row

    for left, right in pairs.tolist():
        least, most = sorted((first(left), first(right)))
        expected[most] = least
    assert components(links, count)[:].tolist() == [first(row) for row in range(count)]


def test_rows_of_one_group_stay_together(tmp_path: Path) -> None:
    groups = np.repeat([0, 5], 5)
    said = _column(tmp_path, groups, np.uint64)
    found = assign(_column(tmp_path, groups), said, {"train": 0.5, "val": 0.5}, 0)[:]
    assert sorted({(int(group), int(split)) for group, split in zip(groups, found, strict=True)}) in (
        [(0, 0), (5, 1)],
        [(0, 1), (5, 0)],
    )


def test_an_empty_split_gets_the_smallest_group(small_pieces: None, tmp_path: Path) -> None:
    groups = np.repeat([0, 1000, 1800], [1000, 800, 900])
    said = _column(tmp_path, groups, np.uint64)
    found = assign(_column(tmp_path, groups), said, {"train": 0.8, "val": 0.1, "test": 0.1}, 0)[:]
    assert found[1000:1800].tolist() == [1] * 800
    assert sorted({*found[:1000].tolist(), *found[1800:].tolist()}) == [0, 2]
    alone = _column(tmp_path, np.zeros(9))
    assert assign(alone, alone, {"train": 0.9, "val": 0.1}, 0)[:].tolist() == [0] * 9


@pytest.mark.parametrize(
    "options",
    [
        {"split": "train=0.8,val=0.15,test=0.05", "reject": ["duplicate"]},
        {"weights": [1.4], "seed": 2},
        {"weights": [2.5, 1], "split": "train=0.5,val=0.5", "max_samples": 900},
    ],
)
def test_pieces_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    rows = [
        {"id": f"r{index % 1100}", "image": f"{index * index % 701}.jpg", "conversations": talk(answer=f"{index % 97}")}
        for index in range(1200)
    ]
    for name in ("train", "val", "other"):
        write_json(tmp_path / "data" / f"{name}.json", rows[: {"train": 600, "val": 900, "other": 1200}[name]])
    sources = [tmp_path / "data" / "other.json", tmp_path / "data" / "val.json"]
    if "split" not in options:  # two splits of one folder, which leak
        sources = [tmp_path / "data"]
    prepare(sources, tmp_path / "whole", check_media="none", max_bad_fraction=0.9, **options)
    monkeypatch.setattr(diskarray, "_PIECE", 50)
    monkeypatch.setattr(diskarray, "_WAYS", 3)
    prepare(sources, tmp_path / "pieces", check_media="none", max_bad_fraction=0.9, **options)
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("whole", "pieces")]
    assert files[0] == files[1]


@dataclass
class _Made:
    """Parts of rows that are made up while they are asked for."""

    rows: int

    def __iter__(self) -> Iterator[Part]:
        for start in range(0, self.rows, 500):
            numbers = range(start, start + 500)
            contents = [mix(0, np.array([number // 10 * 9, number % 10 // 9])).tobytes() for number in numbers]
            keys = mix(1, np.array([[number // 2, number] for number in numbers])).tolist()
            yield Part(self._table(numbers, contents, keys), (), ())

    def _table(self, numbers: range, contents: list[bytes], keys: list[list[int]]) -> pa.Table:
        given = {"row": list(numbers), "content": contents, "keys": keys, "origin": [0] * len(numbers)}
        columns = [pa.array(given.get(field.name, [None] * len(numbers)), field.type) for field in WORKING]
        return pa.table(columns, schema=WORKING)


def test_memory_does_not_grow(small_pieces: None, tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        tracemalloc.start()
        try:
            decide(_Made(rows), tmp_path, {"train": 0.9, "val": 0.1}, 0, [1.5], reject=frozenset({"duplicate"}))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    first, more = peak(5_000), peak(20_000)
    assert more - first < 15_000  # a byte a row
