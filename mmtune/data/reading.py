"""Rows out of JSON and JSON Lines files, each with the line it begins on; one at a time, whatever the file's size."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError
from mmtune.data.messages import RowError

_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
_CHUNK_BYTES = 1 << 22
_NEAR_END = 16  # an error this close to what has been read so far may only mean that more must be read


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as the source holds it.

    Attributes:
        index: Number in the source, from 0.
        line: Line that it begins on, or its number where there are no lines; from 1.
        value: The row, its JSON as :class:`JsonText`, or a :class:`RowError` for what cannot be read.
        split: The split that the source puts it in, if it has splits.
    """

    index: int
    line: int
    value: Any
    split: str | None = None

    def parsed(self) -> Any:
        """The value, parsed if it is text still.

        Raises:
            RowError: ``broken_json``, ``too_deep`` or ``bad_number``; or what the reader noted.
        """
        if isinstance(self.value, RowError):
            raise self.value
        return self.value.parse() if isinstance(self.value, JsonText) else self.value


@dataclass(frozen=True, slots=True)
class JsonText:
    """The JSON of one row, parsed by whoever needs it, so that a row travels to another process as text."""

    text: str

    def parse(self) -> Any:
        """The value.

        Raises:
            RowError: With the reason ``broken_json``, ``too_deep`` or ``bad_number``.
        """
        try:
            return _STRICT.decode(self.text)
        except json.JSONDecodeError as error:
            raise RowError(
                "broken_json", f"Broken JSON: {error.msg} (column {error.colno}).", fix="repair the line"
            ) from error
        except RecursionError as error:
            raise RowError("too_deep", "The JSON is nested too deeply.", fix="flatten the row") from error
        except ValueError as error:
            raise RowError("bad_number", f"A number cannot be used: {error}.", fix="write it as text") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant)


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a ``.json`` list or a JSON Lines file, parsed; which one it is, its content tells.

    Raises:
        DataError: A file that is missing, empty, not UTF-8, or a JSON list that is broken, with the line.
    """
    for row in scan_rows(path):
        try:
            value = row.parsed()
        except RowError as error:
            value = error
        yield RawRow(row.index, row.line, value, row.split)


def scan_rows(path: Path) -> Iterator[RawRow]:
    """Like :func:`read_rows`, with the rows as text; a small part of the file is in memory at a time.

    Raises:
        DataError: As :func:`read_rows`.
    """
    window = _Window(path)
    window.skip_blanks()
    if window.ended:
        raise DataError("The file is empty.", where=str(path), fix="give a file with rows")
    first = window.text[window.position]
    if first == "[":
        return _list_rows(window)
    if first == "{":
        return _line_rows(window)
    raise DataError(
        f"The file begins with {window.text[window.position : window.position + 20]!r}, "
        "which is neither a JSON list nor JSON Lines.",
        where=f"{path}:{window.line}",
        fix="give a .json list of rows or a .jsonl file with one row a line",
    )


def listed_rows(path: Path, key: str) -> Iterator[RawRow]:
    """Like :func:`scan_rows` for the list that is all an object holds, as in ``{"all": […]}``.

    Raises:
        DataError: As :func:`read_rows`.
    """
    window = _Window(path)
    window.skip_blanks()
    head = re.compile(rf"\{{\s*{re.escape(json.dumps(key))}\s*:\s*(?=\[)").match(window.text, window.position)
    if head is None:
        raise window.broken(f"the list '{key}' is missing")
    window.position = head.end()
    return _list_rows(window, closed_by="}")


class _Window:
    """The part of a text file that is being read, and the line that its position is on."""

    def __init__(self, path: Path) -> None:
        self.path, self.text, self.position, self.complete = path, "", 0, False
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._line, self._counted, self._lines_read = 1, 0, 1
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise self._unreadable(error) from error

    @property
    def line(self) -> int:
        """Line of the position, from 1."""
        self._line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    @property
    def ended(self) -> bool:
        """Whether nothing is left."""
        return self.complete and self.position >= len(self.text)

    def more(self) -> bool:
        """Read on, forgetting what lies before the position; False at the end of the file."""
        if self.complete:
            return False
        size = max(_CHUNK_BYTES, len(self.text) - self.position)  # a long row doubles what is read
        try:
            block = self._file.read(size)
            text = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line = self._lines_read + error.object.count(b"\n", 0, error.start)
            raise DataError(
                "The file is not UTF-8 text.",
                where=f"{self.path}:{line}",
                fix="save it as UTF-8 JSON or JSON Lines",
            ) from error
        except OSError as error:
            raise self._unreadable(error) from error
        self._lines_read += text.count("\n")
        _ = self.line
        self.text, self.position, self._counted = self.text[self.position :] + text, 0, 0
        if not block:
            self.complete = True
            self._file.close()
        return True

    def skip_blanks(self) -> str:
        """Go to the next character that is no blank and return it; an empty text at the end."""
        while True:
            self.position = _BLANK.match(self.text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""

    def broken(self, reason: str, position: int | None = None) -> DataError:
        """The error for JSON that is broken here."""
        at = self.position if position is None else position
        line = self.line + self.text.count("\n", self.position, at)
        column = at - max(self.text.rfind("\n", 0, at), -1)
        return DataError(
            f"Broken JSON: {reason} (column {column}).",
            where=f"{self.path}:{line}",
            fix="repair the file at this line",
        )

    def _unreadable(self, error: OSError) -> DataError:
        return DataError(
            f"The file cannot be read: {error.strerror or error}.", where=str(self.path), fix="check the path"
        )


def _list_rows(window: _Window, closed_by: str = "") -> Iterator[RawRow]:
    window.position += 1
    index = 0
    if window.skip_blanks() != "]":
        while True:
            window.skip_blanks()
            line = window.line
            text = _element(window)
            yield RawRow(index, line, JsonText(text))
            index += 1
            following = window.skip_blanks()
            if following == "]":
                break
            if following != ",":
                raise window.broken("a comma or the end of the list is missing")
            window.position += 1
    window.position += 1
    if closed_by and window.skip_blanks() != closed_by:
        raise window.broken(f"the {closed_by} behind the list is missing")
    window.position += len(closed_by)
    if window.skip_blanks():
        raise window.broken("text after the end of the list")


def _element(window: _Window) -> str:
    """The text of the JSON value that begins at the position, which moves behind it."""
    while True:
        try:
            _, end = _DECODER.raw_decode(window.text, window.position)
        except json.JSONDecodeError as error:
            unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(window.text) - _NEAR_END
            if unfinished and window.more():
                continue
            raise window.broken(error.msg, error.pos) from error
        except (RecursionError, ValueError) as error:
            raise window.broken(str(error)) from error
        if end == len(window.text) and window.more():  # a number may go on
            continue
        text = window.text[window.position : end]
        window.position = end
        return text


def _line_rows(window: _Window) -> Iterator[RawRow]:
    index, number = 0, window.line
    while not window.ended:
        end = window.text.find("\n", window.position)
        if end < 0 and window.more():
            continue
        end = len(window.text) if end < 0 else end
        text = window.text[window.position : end]
        window.position = end + 1
        if text.strip():
            yield RawRow(index, number, JsonText(text))
            index += 1
        number += 1
