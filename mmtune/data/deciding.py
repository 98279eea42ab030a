"""What can only be decided when all rows are known: duplicates, splits, leaks between them, and copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mmtune.data.alike import earlier_alike
from mmtune.data.drawing import Numbers, assign, components, mix, split_name
from mmtune.data.parts import Parts
from mmtune.data.signatures import Likeness


@dataclass(frozen=True)
class Decisions:
    """For each accepted row, in order.

    Attributes:
        row: Its number over all sources, ``[R]``.
        split: Index into ``names``, ``[R]``.
        copies: How often it is written, ``[R]``.
        earlier: By warning, the number of the earlier row that is the same or nearly so, -1 for none, ``[R]`` each.
        leaks: Number of the training row that shares a picture with this row of another split, -1 for none, ``[R]``.
    """

    row: Numbers
    split: Numbers
    copies: Numbers
    earlier: Mapping[str, Numbers]
    leaks: Numbers
    names: Sequence[str]
    origin: Numbers = field(repr=False)
    positions: Numbers = field(repr=False)
    targets: Numbers = field(repr=False)


def decide(
    parts: Parts, fractions: dict[str, float] | None, seed: int, weights: Sequence[float], *, reject: frozenset[str],
    near: Likeness | None = None,
) -> Decisions:  # fmt: skip
    """Look at all rows together; 0.1 to 0.2 kB a row are in memory, and nothing of what rows say.

    Args:
        fractions: Splits that were asked for; without them rows go where their source says, else to ``train``.
        weights: How often the rows of each source are used.
        reject: Codes of warnings that rows are rejected for.
        near: What of rows must be nearly the same, to look for near-duplicates.
    """
    columns = _read(parts, signed=near is not None)
    content = _joined(columns.pop("content"), np.uint64).reshape(-1, 2)
    row, origin = _joined(columns.pop("row"), np.int64), _joined(columns.pop("origin"), np.int32)
    positions, targets = (_joined(columns.pop(name), np.int32) for name in ("positions", "targets"))
    leaks = np.full(len(row), -1, np.int64)
    if fractions is None:
        names, split = _given(columns["split"])
        if len(names) > 1:
            owners, keys, media = _keys(columns)
            leaks = _leaks(owners[media], keys[media], row, split)
    used = leaks < 0
    alike = _alike(columns["signature"], content, used, near)
    if fractions is not None:
        owners, keys, _ = _keys(columns)
        names, split = list(fractions), _drawn(fractions, owners, keys, content[:, 0], alike, seed)
    earlier = {code: np.where(places < 0, -1, row[places]) if len(row) else places for code, places in alike.items()}
    for code in reject & set(earlier):
        used &= earlier[code] < 0
    copies = _copies(row, origin, split, used, weights, seed, names)
    return Decisions(row, split, copies, earlier, leaks, names, origin, positions, targets)


def _read(parts: Parts, *, signed: bool) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in ("row", "origin", "content", "split", "positions", "targets")}
    found |= {"keys": [], "counts": [], "signature": []}
    for part in parts:
        table = part.table.combine_chunks()
        if not table.num_rows:
            continue
        found["row"].append(table["row"].to_numpy().copy())
        found["origin"].append(table["origin"].to_numpy().copy())
        for name in ("positions", "targets"):
            found[name].append(table[name].fill_null(-1).to_numpy().copy())
        found["content"].append(np.frombuffer(b"".join(table["content"].to_pylist()), np.uint64))
        if signed:
            found["signature"] += table["signature"].to_pylist()
        silent = table["split"].null_count == table.num_rows
        found["split"].append(repeat(None, table.num_rows) if silent else table["split"].to_pylist())
        lists = table["keys"].combine_chunks()
        found["counts"].append(pc.list_value_length(lists).to_numpy().copy())  # int32
        found["keys"].append(lists.flatten().to_numpy().copy())
    return found


def _joined(pieces: Sequence[Any], kind: Any) -> Numbers:
    return np.concatenate(pieces).astype(kind, copy=False) if pieces else np.empty(0, kind)


def _keys(columns: Mapping[str, list[Any]]) -> tuple[Numbers, Numbers, Numbers]:
    """Row and value of each key, and whether it is of a medium: the last key of a row is that of its id."""
    counts, keys = _joined(columns.pop("counts"), np.int64), _joined(columns.pop("keys"), np.uint64)
    media = np.ones(len(keys), bool)
    media[np.cumsum(counts) - 1] = False
    return np.repeat(np.arange(len(counts)), counts), keys, media


def _alike(
    signatures: Sequence[bytes | None], content: Numbers, used: Numbers, near: Likeness | None
) -> dict[str, Numbers]:
    """By warning, for each row the place of the first row that is the same or nearly so, -1 for none."""
    first = np.full(len(content), -1, np.int64)
    first[used] = _first_of(content[used], np.flatnonzero(used))
    if near is None:
        return {"duplicate": first}
    known = [signature if taken else None for signature, taken in zip(signatures, used, strict=True)]
    return {"duplicate": first, "near_duplicate": earlier_alike(known, first, near)}


def _first_of(content: Numbers, place: Numbers) -> Numbers:
    """For each row the place of the first row with the same content, -1 for the first itself."""
    order = np.lexsort((place, content[:, 1], content[:, 0]))
    ordered = content[order]
    begins = np.ones(len(place), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = place[order][np.maximum.accumulate(np.where(begins, np.arange(len(place)), 0))] if len(place) else place
    found = np.full(len(place), -1, np.int64)
    found[order[~begins]] = firsts[~begins]
    return found


def _drawn(
    fractions: dict[str, float], owners: Numbers, keys: Numbers, said: Numbers, alike: Mapping[str, Numbers], seed: int
) -> Numbers:
    """Splits drawn over groups of rows that share a picture, an id, all that they say, or nearly that."""
    near = alike.get("near_duplicate", np.empty(0, np.int64))
    close = np.flatnonzero(near >= 0)
    everything = np.concatenate([owners, np.arange(len(said)), close])
    groups = components(everything, np.concatenate([keys, said, said[near[close]]]), len(said))
    return assign(groups, said, fractions, seed)


def _given(pieces: Sequence[Iterable[str | None]]) -> tuple[list[str], Numbers]:
    """Splits as the sources say them."""
    number = {"train": 0}
    found = [
        np.fromiter((number.setdefault(split_name(name or "train"), len(number)) for name in piece), np.int8)
        for piece in pieces
    ]
    return list(number), _joined(found, np.int8)


def _leaks(owners: Numbers, keys: Numbers, row: Numbers, split: Numbers) -> Numbers:
    """Rows of other splits whose picture is in the training split."""
    found = np.full(len(row), -1, np.int64)
    if not len(keys):
        return found
    in_train = split[owners] == 0
    trained, place = np.unique(keys[in_train], return_index=True)
    first = owners[in_train][place]
    at = np.minimum(np.searchsorted(trained, keys), max(len(trained) - 1, 0))
    same = (trained[at] == keys) & ~in_train if len(trained) else np.zeros(len(keys), bool)
    found[owners[same]] = row[first[at[same]]]
    return found


def _copies(
    row: Numbers, origin: Numbers, split: Numbers, used: Numbers, weights: Sequence[float], seed: int,
    names: Sequence[str],
) -> Numbers:  # fmt: skip
    """A weight of 2.5 takes every row of a source twice and a drawn half of them a third time."""
    copies = used.astype(np.int64)
    weighted = names.index("train") if "train" in names else 0
    for index, weight in enumerate(weights):
        if weight == 1.0:
            continue
        places = np.flatnonzero(used & (origin == index) & (split == weighted))
        whole = int(weight)
        copies[places] = whole
        more = round((weight - whole) * len(places))
        if more:
            chosen = np.argsort(mix(seed, row[places]), kind="stable")[:more]
            copies[places[chosen]] += 1
    return copies
