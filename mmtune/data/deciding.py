"""What can only be decided when all rows are known: duplicates, splits, leaks between them, and copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmtune.data.alike import earlier_alike
from mmtune.data.diskarray import DiskArray, Numbers, grouped, in_order, lines_of
from mmtune.data.drawing import mix, rank_limit, split_name
from mmtune.data.parts import Parts
from mmtune.data.signatures import Likeness
from mmtune.data.splitting import assign, components


@dataclass(frozen=True)
class Decisions:
    """For each accepted row, in order.

    Attributes:
        row: Its number over all sources, ``[R]``.
        split: Index into ``names``, ``[R]``.
        copies: How often it is written, ``[R]``.
        earlier: By warning, the number of the earlier row that is the same or nearly so, -1 for none, ``[R]`` each.
        leaks: Number of the training row that shares a picture with this row of another split, -1 for none, ``[R]``.
        gone: Whether it is rejected for one of these, ``[R]``.
    """

    row: DiskArray
    split: DiskArray
    copies: DiskArray
    earlier: Mapping[str, DiskArray]
    leaks: DiskArray
    gone: DiskArray
    names: Sequence[str]
    origin: DiskArray = field(repr=False)
    positions: DiskArray = field(repr=False)
    targets: DiskArray = field(repr=False)


def decide(
    parts: Parts, folder: Path, fractions: dict[str, float] | None, seed: int, weights: Sequence[float], *,
    reject: frozenset[str], near: Likeness | None = None,
) -> Decisions:  # fmt: skip
    """Look at all rows together. What is needed of each is on disk, so memory does not grow; near-duplicates need more.

    Args:
        folder: Where the numbers about rows are kept while they are needed.
        fractions: Splits that were asked for; without them rows go where their source says, else to ``train``.
        weights: How often the rows of each source are used.
        reject: Codes of warnings that rows are rejected for.
        near: What of rows must be nearly the same, to look for near-duplicates.
    """
    found = _Columns(parts, folder)
    names, split, row = list(found.names), found.split, found.row
    leaks = DiskArray.full(folder, len(row), -1)
    if fractions is None and len(names) > 1:
        _note_leaks(parts, found, leaks.mapped())
    first = _first_of(found.content, leaks)
    alike = {"duplicate": first}
    if near is not None:
        alike["near_duplicate"] = earlier_alike(_signatures(parts, leaks), first, near)
    if fractions is not None:
        links = _links(parts, found.content, alike.get("near_duplicate"))
        said = DiskArray(folder, np.uint64)
        for content in found.content.pieces():
            said.append(content[:, 0])
        names, split = list(fractions), assign(components(links, len(row)), said, fractions, seed)
    earlier = {code: _rows_at(places, row) for code, places in alike.items()}
    gone = DiskArray(folder, bool)
    for where, leak in leaks.placed():
        gone.append(np.any([leak >= 0, *(earlier[code][where] >= 0 for code in reject & set(earlier))], axis=0))
    weighted = names.index("train") if "train" in names else 0
    copies = _copies(found, split, gone, dict(enumerate(weights)), weighted, seed)
    return Decisions(row, split, copies, earlier, leaks, gone, names, found.origin, found.positions, found.targets)


class _Columns:
    """What is needed of all rows, read out of their parts."""

    def __init__(self, parts: Parts, folder: Path) -> None:
        self.row, self.origin = DiskArray(folder), DiskArray(folder, np.int32)
        self.positions, self.targets = DiskArray(folder, np.int32), DiskArray(folder, np.int32)
        self.content = DiskArray(folder, np.uint64, 2)
        self.split = DiskArray(folder, np.int8)
        self.names = {"train": 0}
        for part in parts:
            table = part.table
            self.row.append(table["row"].to_numpy())
            self.origin.append(table["origin"].to_numpy())
            self.positions.append(table["positions"].fill_null(-1).to_numpy())
            self.targets.append(table["targets"].fill_null(-1).to_numpy())
            self.content.append(np.frombuffer(b"".join(table["content"].to_pylist()), np.uint64).reshape(-1, 2))
            self.split.append(self._splits(table["split"]))

    def _splits(self, column: pa.ChunkedArray) -> Numbers:
        """Splits as the sources say them."""
        if column.null_count == len(column):
            return np.zeros(len(column), np.int8)
        number = self.names
        return np.fromiter(
            (number.setdefault(split_name(name or "train"), len(number)) for name in column.to_pylist()), np.int8
        )


def _keys(parts: Parts) -> Iterator[tuple[Numbers, Numbers, Numbers]]:
    """Row and value of each key, and whether it is of a medium: the last key of a row is that of its id."""
    start = 0
    for part in parts:
        lists = part.table["keys"].combine_chunks()
        counts = pc.list_value_length(lists).to_numpy().astype(np.int64)
        media = np.ones(int(counts.sum()), bool)
        media[np.cumsum(counts) - 1] = False
        yield np.repeat(np.arange(start, start + len(counts)), counts), lists.flatten().to_numpy(), media
        start += len(counts)


def _note_leaks(parts: Parts, found: _Columns, leaks: Numbers) -> None:
    """Note in ``leaks`` which rows of other splits have a picture that is in the training split."""
    keys, split, count = DiskArray(found.row.folder, np.uint64, 4), found.split.mapped(), 0
    for owners, values, media in _keys(parts):
        numbers = np.arange(count, count + len(values))
        keys.append(lines_of(values, split[owners] != 0, owners, numbers)[media])
        count += len(values)
    shared = DiskArray(found.row.folder, np.uint64, 3)
    for lines, first in grouped(in_order(keys)):
        leaking = (lines[:, 1] == 1) & (first[:, 1] == 0)
        shared.append(lines_of(lines[leaking, 2], lines[leaking, 3], first[leaking, 2]))
    row = found.row.mapped()
    for lines in in_order(shared):  # of several pictures the last is named
        leaks[lines[:, 0]] = row[lines[:, 2]]


def _first_of(content: DiskArray, leaks: DiskArray) -> DiskArray:
    """For each row the place of the first row with the same content, -1 for the first itself."""
    table = DiskArray(content.folder, np.uint64, 3)
    for where, lines in content.placed():
        places = np.arange(where.start, where.stop)
        table.append(lines_of(lines[:, 0], lines[:, 1], places)[leaks[where] < 0])
    first = DiskArray.full(content.folder, len(content), -1)
    found = first.mapped()
    for lines, begin in grouped(in_order(table), 2):
        found[lines[:, 2]] = begin[:, 2]
    return first


def _signatures(parts: Parts, leaks: DiskArray) -> Iterator[bytes | None]:
    start = 0
    for part in parts:
        used = leaks[start : start + part.table.num_rows] < 0
        for signature, taken in zip(part.table["signature"].to_pylist(), used.tolist(), strict=True):
            yield signature if taken else None
        start += len(used)


def _links(parts: Parts, content: DiskArray, near: DiskArray | None) -> DiskArray:
    """Pairs of rows that share a picture, an id, all that they say, or nearly that; ``[L, 2]``."""
    keys, links = DiskArray(content.folder, np.uint64, 2), DiskArray(content.folder, np.int64, 2)
    for owners, values, _ in _keys(parts):
        keys.append(lines_of(values, owners))
    for where, lines in content.placed():
        keys.append(lines_of(lines[:, 0], np.arange(where.start, where.stop)))
    for lines, first in grouped(in_order(keys)):
        links.append(np.column_stack([first[:, 1], lines[:, 1]]))
    for where, places in near.placed() if near is not None else ():
        close = np.flatnonzero(places >= 0)
        links.append(np.column_stack([places[close], where.start + close]))
    return links


def _rows_at(places: DiskArray, row: DiskArray) -> DiskArray:
    """The numbers of the rows at places, -1 where there is none."""
    found, numbers = DiskArray(places.folder), row.mapped()
    for piece in places.pieces():
        known = piece >= 0
        piece[known] = numbers[piece[known]]
        found.append(piece)
    return found


def _copies(
    found: _Columns, split: DiskArray, gone: DiskArray, weights: Mapping[int, float], weighted: int, seed: int
) -> DiskArray:
    """A weight of 2.5 takes every row of a source twice and a drawn half of them a third time."""

    def of(index: int) -> Iterator[tuple[slice, Numbers]]:
        for where, lost in gone.placed():
            yield where, ~lost & (found.origin[where] == index) & (split[where] == weighted)

    def ranks(index: int) -> Iterator[Numbers]:
        return (mix(seed, found.row[where][chosen]) for where, chosen in of(index))

    copies = DiskArray(gone.folder)
    for lost in gone.pieces():
        copies.append((~lost).astype(np.int64))
    for index, weight in weights.items():
        if weight == 1.0:
            continue
        whole = int(weight)
        more = round((weight - whole) * sum(int(chosen.sum()) for _, chosen in of(index)))
        limit = rank_limit(lambda index=index: ranks(index), more) if more else None
        for where, chosen in of(index):
            extra = limit is not None and mix(seed, found.row[where]) <= limit
            copies.write(where.start, np.where(chosen, whole + np.int64(extra), copies[where]))
    return copies
