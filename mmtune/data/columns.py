"""Samples as columns: the schema of prepared data, and rows turned into tables and back."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from mmtune.data.diskarray import Numbers
from mmtune.data.intake import Accepted, text_of
from mmtune.data.media import Found
from mmtune.data.sample import Media, Part, Sample, Text, Turn

_TOGETHER_BYTES = 1 << 29
_PART = pa.struct([("text", pa.string()), ("media", pa.int32())])  # one of them is null
_TURN = pa.struct([("role", pa.string()), ("parts", pa.list_(_PART))])
_MEDIA = pa.struct(
    [
        ("modality", pa.string()),
        ("uri", pa.string()),  # as the data file had it
        ("root", pa.int32()),  # index into the manifest's media roots, -1 for a path that lies under none
        ("path", pa.string()),  # under that root; null where ``uri`` is the item itself as JSON
        ("bytes", pa.binary()),  # the file itself, when embedded
        ("size", pa.int64()),  # bytes
        ("sha256", pa.string()),  # where the bytes were read
        ("type", pa.string()),  # "image/jpeg"
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("turns", pa.list_(_TURN)),
        ("media", pa.list_(_MEDIA)),
        ("extra", pa.string()),  # JSON
        ("row", pa.int64()),  # number over all sources
        ("positions", pa.int32()),  # in the model that the data was measured with
        ("targets", pa.int32()),  # of them trained
        ("warnings", pa.list_(pa.string())),
    ]
)
WORKING = pa.schema(
    [
        *SCHEMA,
        ("origin", pa.int32()),  # index of the source
        ("split", pa.string()),  # that the source says
        ("bytes", pa.int64()),  # about how many the row takes
        ("digest", pa.binary(32)),  # of all that the row holds
        ("content", pa.binary(16)),  # of what it says and shows
        ("signature", pa.binary()),  # by which near-duplicates are found; null where nobody asked for them
        ("keys", pa.list_(pa.uint64())),  # of its pictures and its own id: rows that share one stay in one split
    ]
)
"""The columns of rows whose duplicates and splits are not decided yet."""


def table_of(rows: Sequence[Accepted], roots: Sequence[str], sources: Sequence[Sequence[str]]) -> pa.Table:
    """Rows as a table with the columns :data:`WORKING`; equal rows give equal tables.

    Args:
        roots: Folders that media paths are written relative to.
        sources: The roots of each source, which ``Found.root`` counts in.
    """
    number = {folder: index for index, folder in enumerate(roots)}
    columns: dict[str, list[Any]] = {name: [] for name in WORKING.names if name not in ("turns", "media", "keys")}
    turns, media, keys = _Turns(), _Items(), _Lists()
    for row in rows:
        sample, places = row.sample, [number[folder] for folder in sources[row.origin]]
        written = turns.add(sample)
        first = len(media)
        for item, found, facts in zip(sample.media, row.found, row.facts, strict=True):
            written += media.add(item, found, facts, places, roots)
        shown = media.identities(first)
        columns["id"].append(sample.id)
        columns["source"].append(sample.source)
        columns["extra"].append(row.extra)
        columns["row"].append(row.number)
        columns["positions"].append(row.positions)
        columns["targets"].append(row.targets)
        columns["warnings"].append([code for code, _ in row.warnings])
        columns["origin"].append(row.origin)
        columns["split"].append(row.split)
        columns["signature"].append(row.signature)
        columns["bytes"].append(200 + written + len(row.extra or ""))
        said = _said(sample)
        columns["content"].append(hashlib.blake2b(said + "\0".join(shown).encode(), digest_size=16).digest())
        columns["digest"].append(_digest(sample, said, media.names(first), row.extra))
        keys.add([*(f"media\0{one}" for one in shown), f"id\0{row.origin}\0{sample.id}"])
    made = {name: pa.array(values, WORKING.field(name).type) for name, values in columns.items()}
    made |= {"turns": turns.array(), "media": media.array(), "keys": keys.array()}
    return pa.table([made[name] for name in WORKING.names], schema=WORKING)


def rows_at(table: pa.Table, places: Numbers, sizes: Numbers) -> pa.Table:
    """The rows at ``places``; ``sizes`` says about how many bytes each row of the table takes, ``[R]``.

    Arrow puts all of a column together before it takes rows of it, and no more than 2 GiB go together.
    """
    if max(sizes.sum(), sizes[places].sum()) < _TOGETHER_BYTES:
        return table.take(pa.array(places))
    return pa.concat_tables([table.slice(place, 1) for place in places.tolist()])


def _said(sample: Sample) -> bytes:
    pieces = []
    for turn in sample.turns:
        pieces.append(f"\0{turn.role}")
        pieces += [f"\1{part.text}" if isinstance(part, Text) else f"\2{part.modality}" for part in turn.parts]
    return "".join(pieces).encode()


def _digest(sample: Sample, said: bytes, media: Sequence[str], extra: str | None) -> bytes:
    """Hash of a row wherever it lies: paths count as the data file has them."""
    parts = (sample.id.encode(), said, "\0".join(media).encode(), (extra or "").encode())
    return hashlib.sha256(b"\3".join(parts)).digest()


class _Turns:
    """The column ``turns`` under construction, flat."""

    def __init__(self) -> None:
        self.offsets, self.part_offsets = array("i", [0]), array("i", [0])
        self.roles: list[str] = []
        self.texts: list[str | None] = []
        self.media: list[int | None] = []

    def add(self, sample: Sample) -> int:
        """Append the turns of a row; returns about how many bytes they take."""
        size = count = 0
        for turn in sample.turns:
            self.roles.append(turn.role)
            for part in turn.parts:
                if isinstance(part, Text):
                    self.texts.append(part.text)
                    self.media.append(None)
                    size += len(part.text)
                else:
                    self.texts.append(None)
                    self.media.append(count)
                    count += 1
            self.part_offsets.append(len(self.texts))
        self.offsets.append(len(self.roles))
        return size

    def array(self) -> pa.Array:
        """The column."""
        parts = pa.StructArray.from_arrays(
            [pa.array(self.texts, pa.string()), pa.array(self.media, pa.int32())], fields=list(_PART)
        )
        spoken = pa.ListArray.from_arrays(_int32(self.part_offsets), parts)
        turns = pa.StructArray.from_arrays([pa.array(self.roles, pa.string()), spoken], fields=list(_TURN))
        return pa.ListArray.from_arrays(_int32(self.offsets), turns)


class _Items:
    """The column ``media`` under construction, flat."""

    def __init__(self) -> None:
        self.offsets = array("i", [0])
        self.columns: dict[str, list[Any]] = {field.name: [] for field in _MEDIA}
        self._same: list[str] = []
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._same)

    def add(self, item: Media, found: Found, facts: Any, places: Sequence[int], roots: Sequence[str]) -> int:
        """Append an item; returns about how many bytes it takes."""
        path: str | None = found.path
        uri = item.uri if isinstance(item.uri, str) else ""
        name = uri or facts.sha256 or ""
        root = places[found.root] if found.root >= 0 else -1
        if found.rule == "data-uri":
            uri, path, name = uri.partition(",")[0], "", facts.sha256 or ""
        elif found.rule == "inline":
            uri, path, name = text_of(found.value), None, text_of(item.uri)
        elif found.root >= 0:
            path = found.path[len(roots[root].rstrip(os.sep)) + 1 :] or "."  # it lies under the root
        values = (item.modality, uri, root, path, facts.content, facts.size, facts.sha256, facts.type)
        for column, cell in zip(self.columns.values(), values, strict=True):
            column.append(cell)
        self._same.append(facts.sha256 or found.path or uri)
        self._names.append(name)
        return 100 + len(facts.content or b"") + len(uri)

    def identities(self, first: int) -> list[str]:
        """What tells the items of the row that began with ``first`` apart; closes the row."""
        self.offsets.append(len(self._same))
        return self._same[first:]

    def names(self, first: int) -> list[str]:
        """What a row calls its media; the hash of those that have no name."""
        return self._names[first:]

    def array(self) -> pa.Array:
        """The column."""
        arrays = [pa.array(values, _MEDIA.field(name).type) for name, values in self.columns.items()]
        return pa.ListArray.from_arrays(_int32(self.offsets), pa.StructArray.from_arrays(arrays, fields=list(_MEDIA)))


class _Lists:
    """The column ``keys`` under construction."""

    def __init__(self) -> None:
        self.offsets, self.values = array("i", [0]), array("Q")

    def add(self, names: Sequence[str]) -> None:
        self.values.extend(
            int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") for name in names
        )
        self.offsets.append(len(self.values))

    def array(self) -> pa.Array:
        return pa.ListArray.from_arrays(_int32(self.offsets), pa.array(self.values, pa.uint64()))


def _int32(values: array[int]) -> pa.Array:
    return pa.array(values, pa.int32())


class MovedPath(str):
    """A path that remembers what the data file called it, so that it can be looked up again when files moved."""

    uri: str

    def __new__(cls, path: str, uri: str) -> MovedPath:
        made = super().__new__(cls, path)
        made.uri = uri
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return (MovedPath, (str(self), self.uri))


def sample_of(row: Mapping[str, Any], roots: Sequence[str]) -> Sample:
    """A row of a table as a sample."""
    media = [_media_of(item, roots) for item in row["media"]]
    turns = tuple(Turn(turn["role"], tuple(_part_of(part, media) for part in turn["parts"])) for turn in row["turns"])
    return Sample(row["id"], turns, row["source"], json.loads(row["extra"]) if row["extra"] else {})


def _media_of(item: Mapping[str, Any], roots: Sequence[str]) -> Media:
    if item["bytes"] is not None:
        return Media(item["modality"], item["bytes"])
    if item["path"] is None:
        return Media(item["modality"], json.loads(item["uri"]))
    path = item["path"] if item["root"] < 0 else os.path.join(roots[item["root"]], item["path"])
    return Media(item["modality"], MovedPath(path, item["uri"]))


def _part_of(part: Mapping[str, Any], media: Sequence[Media]) -> Part:
    return Text(part["text"]) if part["media"] is None else media[part["media"]]
