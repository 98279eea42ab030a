"""The kept table of a training step against the number of rows is that of the kept figures, and shows no loop."""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_kept_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # its scripts find each other there
    rows = importlib.import_module("benchmarks.rows")
    results = json.loads((BENCHMARKS / "results" / "rows.json").read_text(encoding="utf-8"))
    assert rows.render(results) == (BENCHMARKS / "results" / "rows.md").read_text(encoding="utf-8")
    operations = defaultdict(set)
    for case in results["cases"]:
        if case["batch_size"] == 1:
            continue  # one row needs a few less
        operations[case["method"]].add(case["operations"])
    assert set(operations) == set(rows.METHODS)
    assert all(len(counts) == 1 for counts in operations.values())
