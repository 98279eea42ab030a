"""Parquet tables, read a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmtune.core.errors import DataError
from mmtune.data.readers import Reader
from mmtune.data.reading import RawRow

_MAGIC = b"PAR1"
_BATCH = 1024


def _claims(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def _rows(path: Path) -> Iterator[RawRow]:
    index = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=_BATCH, use_threads=False):
                for value in batch.to_pylist():
                    yield RawRow(index, index + 1, value)
                    index += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise _damaged(path, index, error) from error


def _count(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, 0, error) from error


def _damaged(path: Path, index: int, error: Exception) -> DataError:
    return DataError(f"The table cannot be read: {error}", where=f"{path}:{index + 1}", fix="copy or write it again")


READER = Reader(_claims, _rows, _count)
