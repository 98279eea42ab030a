"""JSON and JSON Lines: rows with their lines, and where a file is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmtune.core.errors import DataError
from mmtune.data.messages import RowError
from mmtune.data.reading import read_rows


def _rows(path: Path, text: str | bytes) -> list[tuple[int, object]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(row.line, row.value) for row in read_rows(path)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", []),
        ("  [ ]  ", []),
        ("[1, 2]", [(1, 1), (1, 2)]),
        ('[\n 1,\n\n {\n  "a": 2}\n]\n', [(2, 1), (4, {"a": 2})]),
        ('{"a": 1}\n\n{"a": 2}', [(1, {"a": 1}), (3, {"a": 2})]),
        ('{"a": "\u2028"}\r\n{"a": 2}\r\n', [(1, {"a": "\u2028"}), (2, {"a": 2})]),
        ("\ufeff[1]", [(1, 1)]),
    ],
)
def test_rows(tmp_path: Path, text: str, expected: list[tuple[int, object]]) -> None:
    assert _rows(tmp_path / "a.json", text) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[1,\n2,\n]", 3),
        ("[1\n2]", 2),
        ("[1, 2", 1),
        ('[{"a": 1},\n{"a": }]', 2),
        ("[1]\nrest", 2),
        ("[1,\n\n,2]", 3),
        ("hello", 1),
        ('[{"a": "\n"}]', 1),
    ],
)
def test_broken_list_names_the_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError) as raised:
        _rows(path, text)
    assert raised.value.where == f"{path}:{line}"


def test_broken_line_is_a_row_of_its_own(tmp_path: Path) -> None:
    (_, good), (line, bad), _ = _rows(tmp_path / "a.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\n')
    assert good == {"a": 1}
    assert line == 2
    assert isinstance(bad, RowError)
    assert bad.reason == "broken_json"


@pytest.mark.parametrize("text", [b"", b" \n", b'[{"a": "\xff"}]'])
def test_files_without_text(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(DataError):
        _rows(tmp_path / "a.json", text)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(tmp_path / "none.json"))
