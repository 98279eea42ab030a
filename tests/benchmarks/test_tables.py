"""The kept results make the kept tables."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.tables import render

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_kept_tables_are_those_of_the_kept_figures() -> None:
    results = json.loads((RESULTS / "methods.json").read_text(encoding="utf-8"))
    text = (RESULTS / "methods.md").read_text(encoding="utf-8")
    assert render(results) == text
    assert text.count("| LLaVA |") == text.count("| VLoRA |") == 6  # two bases, three lengths of text


def test_half_a_comparison_gives_no_ratio() -> None:
    results = json.loads((RESULTS / "methods.json").read_text(encoding="utf-8"))
    results["cases"] = results["cases"][:1]
    text = render(results)
    assert text.count("| LLaVA |") == 1
    assert "(nothing measured)" in text
