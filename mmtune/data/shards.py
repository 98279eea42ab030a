"""Prepared data on disk: parquet shards of samples, written in order and read one row group at a time."""

from __future__ import annotations

import bisect
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmtune.core.errors import DataError
from mmtune.data.columns import SCHEMA, sample_of
from mmtune.data.sample import Sample

_GROUP_BYTES = 1 << 19  # a row is read with its whole group, so groups are small; pictures make them few rows long
_GROUP_ROWS = 512
_FILE_BYTES = 1 << 28
_FILE_GROUPS = 256  # an open file keeps some 16 kB about each of its groups in memory
_KEPT_GROUPS = 8  # that a reader holds on to
OPEN_FILES = 64


class ShardWriter:
    """Write rows of one split to ``<split>-00000.parquet`` and so on.

    Where groups and files end follows from the rows alone, not from the pieces they come in: equal rows, equal bytes.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self.files: list[str] = []
        self.rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []
        self._group_rows = self._group_bytes = self._file_bytes = self._file_groups = 0

    def write(self, table: pa.Table, sizes: Sequence[int]) -> None:
        """Append rows with the columns of the schema; ``sizes`` says about how many bytes each takes."""
        start = 0
        for at, size in enumerate(sizes, start=1):
            self._group_rows += 1
            self._group_bytes += size
            if self._group_bytes >= _GROUP_BYTES or self._group_rows >= _GROUP_ROWS:
                self._pending.append(table.slice(start, at - start))
                self._flush()
                start = at
        if start < len(sizes):
            self._pending.append(table.slice(start))
        self.rows += len(sizes)

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._writer is None:
            name = f"{self._split}-{len(self.files):05d}.parquet"
            self.files.append(name)
            self._writer = pq.ParquetWriter(
                self._folder / name, SCHEMA, compression="zstd", use_dictionary=False,
                write_statistics=False,  # least and greatest texts, which nobody asks for and every open file keeps
            )  # fmt: skip
        self._writer.write_table(pa.concat_tables(self._pending).combine_chunks())
        self._file_bytes += self._group_bytes
        self._file_groups += 1
        self._pending, self._group_rows, self._group_bytes = [], 0, 0
        if self._file_bytes >= _FILE_BYTES or self._file_groups >= _FILE_GROUPS:
            self._writer.close()
            self._writer, self._file_bytes, self._file_groups = None, 0, 0


class ShardReader:
    """Samples of a list of shard files by index; a row group is read when one of its rows is asked for.

    Picklable: a copy in another process opens the files anew.

    Args:
        open_files: Files that are kept open; each takes up to 4 MB, and as many milliseconds to open again.

    Raises:
        DataError: A shard that is missing or damaged.
    """

    def __init__(self, files: Sequence[Path], roots: Sequence[str], *, open_files: int = OPEN_FILES) -> None:
        self._files, self._roots, self._open_files = list(files), list(roots), open_files
        self._first_groups = array("q")  # of each file
        self._ends = array("q")  # of each row group
        end = 0
        for path in self._files:
            metadata = self._metadata(path)
            self._first_groups.append(len(self._ends))
            for group in range(metadata.num_row_groups):
                end += metadata.row_group(group).num_rows
                self._ends.append(end)
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_kept": OrderedDict()}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        group = bisect.bisect_right(self._ends, index)
        first = self._ends[group - 1] if group else 0
        return sample_of(self._table(group).slice(index - first, 1).to_pylist()[0], self._roots)

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
        number = bisect.bisect_right(self._first_groups, group) - 1
        try:
            table = self._file(number).read_row_group(group - self._first_groups[number], use_threads=False)
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

    def _file(self, number: int) -> pq.ParquetFile:
        if number not in self._open:
            self._open[number] = pq.ParquetFile(self._files[number], memory_map=True)
        self._open.move_to_end(number)
        while len(self._open) > self._open_files:
            self._open.popitem(last=False)[1].close()
        return self._open[number]
