"""Which split each row goes to: groups of rows that belong together, dealt out by hashes of a seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmtune.data.diskarray import DiskArray, Numbers, in_order, lines_of
from mmtune.data.drawing import mix

_STEP = 1 << 17  # rows that are looked at together


def components(links: DiskArray, count: int) -> DiskArray:
    """For each of ``count`` rows the first row that it is connected to, ``[R]``.

    Args:
        links: Pairs of rows that belong together, ``[L, 2]``.
    """
    labels = DiskArray(links.folder)
    for start in range(0, count, _STEP):
        labels.append(np.arange(start, min(start + _STEP, count)))
    label, changed = labels.mapped(), len(links) > 0
    while changed:
        changed = False
        for pairs in links.pieces():
            ends = label[pairs]
            changed = changed or bool((ends[:, 0] != ends[:, 1]).any())
            least = np.repeat(ends.min(axis=1), 2)
            np.minimum.at(label, ends.reshape(-1), least)  # the rows that their labels name, so that chains halve
            np.minimum.at(label, pairs.reshape(-1), least)
        for start in range(0, count, _STEP):
            label[start : start + _STEP] = label[label[start : start + _STEP]]
    return labels


def assign(groups: DiskArray, said: DiskArray, fractions: dict[str, float], seed: int) -> DiskArray:
    """The split of each row, as an index into ``fractions``: rows of one group stay together.

    In an order drawn by the seed, groups fill the smaller splits as far as they fit; the largest split takes the rest.
    Each split gets a group while there are enough.

    Args:
        groups: Group of each row, as the index of one of its rows, ``[R]``.
        said: What each row is called wherever it stands, by which groups are drawn, ``[R]`` uint64.
    """
    order = _drawn_order(groups, said, seed)
    splits = list(fractions)
    largest = max(splits, key=lambda name: fractions[name])
    wanted = {
        splits.index(name): round(fractions[name] * len(groups))
        for name in splits
        if name != largest and fractions[name] > 0
    }
    chosen = DiskArray.full(groups.folder, len(groups), splits.index(largest), np.int8)
    found = chosen.mapped()
    for index in _fill(order, wanted, found):
        _fill_empty(order, index, splits.index(largest), found)
    split = DiskArray(groups.folder, np.int8)
    for group in groups.pieces():
        split.append(found[group])
    return split


def _drawn_order(groups: DiskArray, said: DiskArray, seed: int) -> DiskArray:
    """(rank, name, group, size) of each group, ``[G, 4]``; their order is that of drawing."""
    sizes = DiskArray.full(groups.folder, len(groups), 0).mapped()
    names = DiskArray.full(groups.folder, len(groups), np.iinfo(np.uint64).max, np.uint64).mapped()
    for where, group in groups.placed():
        np.add.at(sizes, group, 1)
        np.minimum.at(names, group, said[where])
    order = DiskArray(groups.folder, np.uint64, 4)
    for where, _ in groups.placed():
        group = where.start + np.flatnonzero(sizes[where])
        order.append(lines_of(mix(seed, names[group]), names[group], group, sizes[group]))
    return order


def _fill(order: DiskArray, wanted: dict[int, int], found: Numbers) -> list[int]:
    """Give groups to the smaller splits as far as they fit; returns the splits that got none."""
    left = dict(wanted)
    for group, size in _groups(order):
        if not any(left.values()):
            break
        for index in wanted:
            if size <= left[index]:
                left[index] -= size
                found[group] = index
                break
    return [index for index in wanted if left[index] == wanted[index]]


def _fill_empty(order: DiskArray, index: int, largest: int, found: Numbers) -> None:
    """Give an empty split the smallest group of the largest split, which keeps one."""
    number, least, smallest = 0, np.inf, 0
    for lines in in_order(order):
        rest = lines[found[lines[:, 2]] == largest]
        number += len(rest)
        if len(rest) and rest[:, 3].min() < least:
            _, _, smallest, least = rest[rest[:, 3].argmin()].tolist()
    if number > 1:
        found[smallest] = index


def _groups(order: DiskArray) -> Iterator[tuple[int, int]]:
    for lines in in_order(order):
        yield from zip(lines[:, 2].tolist(), lines[:, 3].tolist(), strict=True)
