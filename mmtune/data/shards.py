"""Prepared data on disk: parquet shards of samples, written in order and read one row group at a time."""

from __future__ import annotations

import bisect
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmtune.core.errors import DataError
from mmtune.data.intake import Accepted
from mmtune.data.media import Found, data_uri_bytes
from mmtune.data.sample import Media, Part, Sample, Text, Turn

_PART = pa.struct([("text", pa.string()), ("media", pa.int32())])  # one of them is null
_TURN = pa.struct([("role", pa.string()), ("parts", pa.list_(_PART))])
_MEDIA = pa.struct(
    [
        ("modality", pa.string()),
        ("uri", pa.string()),  # as the data file had it
        ("root", pa.int32()),  # index into the manifest's media roots, -1 for a path that lies under none
        ("path", pa.string()),  # under that root
        ("bytes", pa.binary()),  # the file itself, when embedded
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("turns", pa.list_(_TURN)),
        ("media", pa.list_(_MEDIA)),
        ("extra", pa.string()),  # JSON
    ]
)
_GROUP_BYTES = 1 << 19  # a row is read with its whole group, so groups are small; pictures make them few rows long
_GROUP_ROWS = 512
_FILE_BYTES = 1 << 28
_KEPT_GROUPS = 8  # that a reader holds on to


class ShardWriter:
    """Write samples of one split to ``<split>-00000.parquet`` and so on; equal samples give equal bytes.

    Args:
        folder: Where the files go.
        roots: Folders that media paths are written relative to.
        embed: Put the files of media into the shards.
    """

    def __init__(self, folder: Path, split: str, roots: Sequence[str], *, embed: bool) -> None:
        self._folder, self._split, self._roots, self._embed = folder, split, list(roots), embed
        self.files: list[str] = []
        self.rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._group: list[dict[str, Any]] = []
        self._group_bytes = self._file_bytes = 0

    def add(self, row: Accepted) -> None:
        """Append a sample."""
        made, size = _row(row, self._roots, self._embed)
        self._group.append(made)
        self._group_bytes += size
        self.rows += 1
        if self._group_bytes >= _GROUP_BYTES or len(self._group) >= _GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _flush(self) -> None:
        if not self._group:
            return
        if self._writer is None:
            name = f"{self._split}-{len(self.files):05d}.parquet"
            self.files.append(name)
            self._writer = pq.ParquetWriter(self._folder / name, SCHEMA, compression="zstd", use_dictionary=False)
        self._writer.write_table(pa.Table.from_pylist(self._group, schema=SCHEMA))
        self._file_bytes += self._group_bytes
        self._group, self._group_bytes = [], 0
        if self._file_bytes >= _FILE_BYTES:
            self._writer.close()
            self._writer, self._file_bytes = None, 0


def _row(row: Accepted, roots: Sequence[str], embed: bool) -> tuple[dict[str, Any], int]:
    """A sample in the schema's form, and about how many bytes it takes."""
    sample, size, count = row.sample, 200, 0
    turns = []
    for turn in sample.turns:
        parts: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, Text):
                parts.append({"text": part.text, "media": None})
                size += len(part.text)
            else:
                parts.append({"text": None, "media": count})
                count += 1
        turns.append({"role": turn.role, "parts": parts})
    media = [_media(item, found, roots, embed) for item, found in zip(sample.media, row.found, strict=True)]
    size += sum(len(item["bytes"] or b"") + 100 for item in media)
    extra = json.dumps(sample.extra, ensure_ascii=False, sort_keys=True) if sample.extra else None
    return {"id": sample.id, "source": sample.source, "turns": turns, "media": media, "extra": extra}, size


def _media(item: Media, found: Found, roots: Sequence[str], embed: bool) -> dict[str, Any]:
    content, uri, path = None, str(item.uri), found.path
    if found.rule == "data-uri":
        content, uri, path = data_uri_bytes(found.path), uri.partition(",")[0], ""
    elif found.root >= 0:
        path = os.path.relpath(found.path, roots[found.root])
    if embed and content is None and found.rule != "url":
        content = Path(found.path).read_bytes()
    return {"modality": item.modality, "uri": uri, "root": found.root, "path": path, "bytes": content}


class ShardReader:
    """Samples of a list of shard files by index; a row group is read when one of its rows is asked for.

    Picklable: a copy in another process opens the files anew.

    Raises:
        DataError: A shard that is missing or damaged.
    """

    def __init__(self, files: Sequence[Path], roots: Sequence[str]) -> None:
        self._files, self._roots = list(files), list(roots)
        self._groups: list[tuple[int, int]] = []  # (file, row group)
        self._ends: list[int] = []
        end = 0
        for number, path in enumerate(self._files):
            metadata = self._metadata(path)
            for group in range(metadata.num_row_groups):
                end += metadata.row_group(group).num_rows
                self._groups.append((number, group))
                self._ends.append(end)
        self._open: dict[int, pq.ParquetFile] = {}
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_kept": OrderedDict()}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        group = bisect.bisect_right(self._ends, index)
        first = self._ends[group - 1] if group else 0
        return self._sample(self._table(group).slice(index - first, 1).to_pylist()[0])

    def _metadata(self, path: Path) -> pq.FileMetaData:
        try:
            return pq.read_metadata(path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"A shard of the prepared data cannot be read: {error}", where=str(path), fix="prepare the data again"
            ) from error

    def _table(self, group: int) -> pa.Table:
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        number, inside = self._groups[group]
        if number not in self._open:
            self._open[number] = pq.ParquetFile(self._files[number], memory_map=True)
        try:
            table = self._open[number].read_row_group(inside, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"A shard of the prepared data is damaged: {error}",
                where=str(self._files[number]),
                fix="prepare the data again",
            ) from error
        self._kept[group] = table
        while len(self._kept) > _KEPT_GROUPS:
            self._kept.popitem(last=False)
        return table

    def _sample(self, row: dict[str, Any]) -> Sample:
        media = [self._media(item) for item in row["media"]]
        turns = tuple(Turn(turn["role"], tuple(_part(part, media) for part in turn["parts"])) for turn in row["turns"])
        return Sample(row["id"], turns, row["source"], json.loads(row["extra"]) if row["extra"] else {})

    def _media(self, item: dict[str, Any]) -> Media:
        if item["bytes"] is not None:
            return Media(item["modality"], item["bytes"])
        path = item["path"] if item["root"] < 0 else os.path.join(self._roots[item["root"]], item["path"])
        return Media(item["modality"], MovedPath(path, item["uri"]))


class MovedPath(str):
    """A path that remembers what the data file called it, so that it can be looked up again when files moved."""

    uri: str

    def __new__(cls, path: str, uri: str) -> MovedPath:
        made = super().__new__(cls, path)
        made.uri = uri
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return (MovedPath, (str(self), self.uri))


def _part(part: dict[str, Any], media: Sequence[Media]) -> Part:
    return Text(part["text"]) if part["media"] is None else media[part["media"]]
