"""A comparison as one HTML file, and as Markdown beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtune.report.compare.build import Compared
from mmtune.report.compare.view import (
    budget_sentence,
    cost_rows,
    difference_rows,
    interval,
    origins,
    stages_sentence,
    test_rows,
    unknown,
    verdict,
    view,
)
from mmtune.report.page import format_score, render
from mmtune.train.files import write_text, writing

TEST_HEAD = ("pair", "difference (95 %)", "only one right", "p", "p (Holm)")


def write_comparison(compared: Compared, path: Path) -> tuple[Path, Path]:
    """Write the page and, beside it, the same in Markdown.

    Raises:
        ResourceError: The folder cannot be written.
    """
    with writing(path, "--html"):
        path.parent.mkdir(parents=True, exist_ok=True)
    title = " and ".join(", ".join(compared.names).rsplit(", ", 1))
    page = render("compare.html.j2", title=f"{title} side by side", compared=view(compared))
    return write_text(path, page, "--html"), write_text(path.with_suffix(".md"), markdown(compared), "--html")


def markdown(compared: Compared) -> str:
    """Tables without plots and pictures."""
    result = compared.result
    names = compared.names
    lines = [f"# {', '.join(names)}", "", budget_sentence(result), ""]
    if result["budget"] and result["budget"]["differences"]:
        lines += _table(["", *names], difference_rows(result["budget"]["differences"], names))
    lines += ["## Scores", "", *(f"Not ranked: {reason}." for reason in result["reasons"]), ""]
    for table in result["evaluations"]:
        lines += [f"### {table['title']}", "", f"By {table['scorer']}, rule {table['rule']}.", ""]
        lines += _table(["rank", "answers of", str(table["score"]), "95 % interval", "rows"], _scores(table))
        lines += [sentence, ""] if (sentence := unknown(table)) else []
        if sentence := verdict(table):
            lines += [sentence, ""]
            lines += _table(TEST_HEAD, test_rows(table))
    if result["runs"]:
        lines += ["## Costs", "", *_table(["", *names], [[label, *cells] for label, cells in cost_rows(result)])]
        lines += [sentence, ""] if (sentence := stages_sentence(result)) else []
    if compared.disagreements:
        lines += [f"## Where they disagree ({result['disagreements']['total']} rows)", ""]
        rows = [[row.id, row.gold, *(_verdict(*row.answers[name]) for name in names)] for row in compared.disagreements]
        lines += _table(["row", "right", *names], rows)
    lines += _notes(result)
    return "\n".join(lines).rstrip() + "\n"


def _scores(table: Mapping[str, Any]) -> list[list[str]]:
    return [
        [str(row["rank"] or "–"), row["run"], format_score(row["value"]), interval(row), str(row["n"])]
        for row in table["rows"]
    ]


def _verdict(text: str, right: bool) -> str:
    return f"{'✓' if right else '✗'} {text}"


def _notes(result: Mapping[str, Any]) -> list[str]:
    measured = result["measurement"]
    if measured is None:
        return [f"- {origin}" for origin in origins(result)]
    told = [f"{name}: {note}" for name, found in result["runs"].items() for note in found["notes"]]
    words = f"Measured on {measured['device']} with {measured['threads']} threads: {measured['statistic']}."
    return [*(f"- {note}" for note in told), "", words]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    body = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body, ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
