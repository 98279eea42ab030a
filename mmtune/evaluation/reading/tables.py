"""Tables of questions: VLMEvalKit's TSV and Hugging Face's parquet as one mapping a row."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError
from mmtune.data.messages import RowError
from mmtune.data.reading import read_rows

Row = Mapping[str, Any]


def read_tsv(path: Path, *, pandas_na: bool = False) -> list[Row]:
    """The rows of a tab-separated file with a header; an empty cell is None.

    Args:
        pandas_na: Read cells as pandas does by default, which published numbers rest on: "None", "NA", "N/A", "null"
            and "nan" are empty too, and a column of numbers with blanks shows "3" as "3.0".

    Raises:
        DataError: No such file, no header, a row with more or fewer cells, or an index that occurs twice.
    """
    rows = _pandas_rows(path) if pandas_na else _plain_rows(path)
    if not rows:
        raise DataError("The file has no rows.", where=str(path), fix="give a file with rows")
    if "index" in rows[0]:
        _check_index(rows, path)
    return rows


def _plain_rows(path: Path) -> list[Row]:
    csv.field_size_limit(sys.maxsize)  # a cell holds a whole picture
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t")
            header = next(reader, [])
            _check_header(header, path)
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"The row has {len(cells)} cells, the header {len(header)}.",
                        where=f"{path}:{reader.line_num}",
                        fix="repair the row; cells with tabs or line ends stand in double quotes",
                    )
                rows.append({name: cell or None for name, cell in zip(header, cells, strict=True)})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The table cannot be read: {error}", where=str(path), fix="check the file") from error
    return rows


def _pandas_rows(path: Path) -> list[Row]:
    import pandas

    try:
        frame = pandas.read_csv(path, sep="\t")
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"The table cannot be read: {error}", where=str(path), fix="check the file") from error
    empty = frame.isna().itertuples(index=False, name=None)
    names = [str(name) for name in frame.columns]
    return [
        {name: None if blank else str(value) for name, value, blank in zip(names, row, blanks, strict=True)}
        for row, blanks in zip(frame.itertuples(index=False, name=None), empty, strict=True)
    ]


def _check_header(header: list[str], path: Path) -> None:
    twice = [name for at, name in enumerate(header) if name in header[:at]]
    if twice:
        raise DataError(
            f"The column '{twice[0]}' occurs twice.", where=f"{path}:1", fix="give each column its own name"
        )


def _check_index(rows: list[Row], path: Path) -> None:
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        index = row["index"]
        name = str(int(index)) if index is not None and index.isdecimal() else index  # "01" is 1
        if name is None or name in seen:
            problem = "has no index" if name is None else f"repeats the index {index}"
            raise DataError(f"The row {problem}.", where=f"{path}:{number}", fix="give every row an index of its own")
        seen.add(name)


def read_parquet(path: Path) -> list[Row]:
    """The rows of a parquet file; pictures are mappings of ``bytes`` and ``path``.

    Raises:
        DataError: Not a parquet file.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        return list(parquet.read_table(path).to_pylist())
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"The table cannot be read: {error}", where=str(path), fix="check the file") from error


def read_json(path: Path) -> Any:
    """The value of a JSON file, or the list of the rows of a JSON Lines file; what it is, its content tells.

    Raises:
        DataError: Broken JSON, with the line, or not UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The file cannot be read: {error}", where=str(path), fix="save it as UTF-8 JSON") from error
    except json.JSONDecodeError:
        return json_rows(path)


def json_rows(path: Path) -> list[Any]:
    """The rows of a JSON list or a JSON Lines file.

    Raises:
        DataError: Broken JSON, with the line.
    """
    found = []
    for row in read_rows(path):
        if isinstance(row.value, RowError):
            raise DataError(row.value.message, where=f"{path}:{row.line}", fix=row.value.fix)
        found.append(row.value)
    return found
