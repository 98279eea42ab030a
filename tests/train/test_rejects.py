"""Rows that cannot be used: written down once, also when a run is killed while it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmtune.core.errors import DataError
from mmtune.train.feed import Rejected
from mmtune.train.rejects import Ledger


def bad(name: str) -> Rejected:
    return Rejected(name, "data.json:1", DataError("no picture", where=name))


def test_a_line_that_a_crash_cut_off_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    first = Ledger(path, 0.5, 4, drops_overlong=False)
    first.add([bad("a"), bad("b")], 0)
    path.write_bytes(path.read_bytes()[:-20])
    again = Ledger(path, 0.5, 4, drops_overlong=False)
    again.add([bad("a"), bad("b")], 0)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b"]
    with pytest.raises(DataError, match="3 rows cannot be used"):
        again.add([bad("c")], 0)


@pytest.mark.parametrize("name", ["a\u2028b", "a\x85b", "caf\udce9.png"], ids=["separator", "next line", "no text"])
def test_odd_names_are_read_back(name: str, tmp_path: Path) -> None:
    Ledger(tmp_path / "rejected.jsonl", 0.25, 4, drops_overlong=False).add([bad(name)], 0)
    again = Ledger(tmp_path / "rejected.jsonl", 0.25, 4, drops_overlong=False)
    again.add([bad(name)], 0)
    with pytest.raises(DataError, match="2 rows cannot be used"):
        again.add([bad("c")], 0)
