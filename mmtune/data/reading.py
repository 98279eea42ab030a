"""Rows out of JSON and JSON Lines files, each with the line it begins on; one row at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError
from mmtune.data.messages import RowError

_BLANK = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as the file holds it.

    Attributes:
        index: Number in the file, from 0.
        line: Line that it begins on, from 1.
        value: What the JSON says, or a :class:`RowError` for a line that is no JSON.
    """

    index: int
    line: int
    value: Any


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a ``.json`` list or a JSON Lines file; which one it is, its content tells.

    Raises:
        DataError: A file that is missing, empty, not UTF-8, or a JSON list that is broken, with the line.
    """
    text = _text(path)
    start = _BLANK.match(text).end()  # type: ignore[union-attr]
    if start == len(text):
        raise DataError("The file is empty.", where=str(path), fix="give a file with rows")
    if text[start] == "[":
        return _list_rows(text, start, path)
    if text[start] == "{":
        return _line_rows(text)
    raise DataError(
        f"The file begins with {text[start : start + 20]!r}, which is neither a JSON list nor JSON Lines.",
        where=f"{path}:{1 + text.count(chr(10), 0, start)}",
        fix="give a .json list of rows or a .jsonl file with one row a line",
    )


def count_rows(path: Path) -> int:
    """How many rows a file has."""
    return sum(1 for _ in read_rows(path))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise DataError(
            "The file is not UTF-8 text.", where=f"{path}:{line}", fix="save it as UTF-8 JSON or JSON Lines"
        ) from error
    except OSError as error:
        raise DataError(
            f"The file cannot be read: {error.strerror or error}.", where=str(path), fix="check the path"
        ) from error


def _list_rows(text: str, start: int, path: Path) -> Iterator[RawRow]:
    decoder = json.JSONDecoder()
    position, line, counted, index = start + 1, 1, 0, 0
    while True:
        position = _BLANK.match(text, position).end()  # type: ignore[union-attr]
        if index == 0 and text[position : position + 1] == "]":
            break
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise _broken(path, error.lineno, error.colno, error.msg) from error
        yield RawRow(index, line, value)
        index += 1
        position = _BLANK.match(text, end).end()  # type: ignore[union-attr]
        if text[position : position + 1] == "]":
            break
        if text[position : position + 1] != ",":
            at = json.JSONDecodeError("a comma or the end of the list is missing", text, position)
            raise _broken(path, at.lineno, at.colno, at.msg)
        position += 1
    rest = _BLANK.match(text, position + 1).end()  # type: ignore[union-attr]
    if rest != len(text):
        at = json.JSONDecodeError("text after the end of the list", text, rest)
        raise _broken(path, at.lineno, at.colno, at.msg)


def _broken(path: Path, line: int, column: int, reason: str) -> DataError:
    return DataError(
        f"Broken JSON: {reason} (column {column}).", where=f"{path}:{line}", fix="repair the file at this line"
    )


def _line_rows(text: str) -> Iterator[RawRow]:
    index = number = position = 0
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        line, position, number = text[position:end], end + 1, number + 1
        if not line.strip():
            continue
        value: Any
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            value = RowError("broken_json", f"Broken JSON: {error.msg} (column {error.colno}).", fix="repair the line")
        yield RawRow(index, number, value)
        index += 1
