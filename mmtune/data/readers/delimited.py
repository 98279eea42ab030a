"""Tables as text: CSV and TSV with a header line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from mmtune.core.errors import DataError
from mmtune.data.messages import RowError
from mmtune.data.readers import Reader
from mmtune.data.reading import RawRow

_ENDINGS = (".csv", ".tsv", ".tab")
_DELIMITERS = ("\t", ",", ";")
_LARGEST_FIELD = 1 << 26


def _claims(path: Path) -> bool:
    return path.suffix.lower() in _ENDINGS and path.is_file()


def _rows(path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(_LARGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            delimiter = max(_DELIMITERS, key=lambda mark: (head.count(mark), -_DELIMITERS.index(mark)))
            table = csv.reader(file, delimiter=delimiter, strict=True)
            yield from _body(path, table)
    except UnicodeDecodeError as error:
        raise DataError("The file is not UTF-8 text.", where=str(path), fix="save it as UTF-8") from error
    except OSError as error:
        raise DataError(
            f"The file cannot be read: {error.strerror or error}.", where=str(path), fix="check the path"
        ) from error


def _body(path: Path, table: csv._reader) -> Iterator[RawRow]:  # type: ignore[name-defined]
    header = next(table, None)
    if not header or not any(name.strip() for name in header):
        raise DataError("The table has no header line.", where=f"{path}:1", fix="name the columns in the first line")
    names = [name.strip() for name in header]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"Two columns are called '{twice}'.", where=f"{path}:1", fix="rename one of them")
    index, line = 0, table.line_num + 1
    while True:
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            problem = RowError("bad_quoting", f"The line cannot be read: {error}.", fix='write " inside quotes as ""')
            yield RawRow(index, line, problem)
            index, line = index + 1, table.line_num + 1
            continue
        if cells:
            yield RawRow(index, line, _row(names, cells))
            index += 1
        line = table.line_num + 1


def _row(names: list[str], cells: list[str]) -> dict[str, str | None] | RowError:
    if len(cells) != len(names):
        return RowError(
            "wrong_column_count",
            f"{len(cells)} cells for {len(names)} columns.",
            fix="quote cells that hold the delimiter or a line break",
        )
    return {name: cell or None for name, cell in zip(names, cells, strict=True)}


READER = Reader(_claims, _rows)
