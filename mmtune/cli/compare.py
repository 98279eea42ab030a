"""``mmtune compare``: runs, or evaluations, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmtune.cli.console import Console, Result
from mmtune.cli.options import DEVICE
from mmtune.cli.tables import plain_table


def run(
    context: typer.Context,
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Folders of finished runs, or of evaluations.")
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page, whole in one file, and Markdown beside it.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="F", help="The picture that speed is measured on. [default: a drawn one]")
    ] = None,
    device: DEVICE = "auto",
) -> Result:
    """Put finished runs side by side: their budget, learning, costs, speed and scores.

    Scores are those that `mmtune eval --model RUN` left in the run or under runs/eval. They are ranked only where they
    were made under the same conditions. Folders of `mmtune eval --output`, of any model or of given answers, are
    compared by their scores alone.
    """
    from mmtune.cli.models import quiet_libraries
    from mmtune.report.compare.build import compare
    from mmtune.report.compare.write import write_comparison

    console: Console = context.obj
    quiet_libraries(console)
    compared = compare(runs, picture=image, device=device, note=console.note)
    found = compared.result
    text = comparison_summary(found)
    if html is not None:
        page, markdown = write_comparison(compared, html)
        found |= {"html": str(page), "markdown": str(markdown)}
        text += f"\n{page}"
    return Result(found, text)


def comparison_summary(found: dict[str, Any]) -> str:
    """Budget, scores and costs as plain tables."""
    from mmtune.report.compare.view import (
        budget_sentence,
        cost_rows,
        interval,
        p_value,
        stages_sentence,
        unknown,
        verdict,
    )
    from mmtune.report.page import format_score

    parts = [budget_sentence(found)]
    parts += [
        f"  {entry['what']}: " + ", ".join(f"{name} {value}" for name, value in entry["values"].items())
        for entry in (found["budget"] or {"differences": ()})["differences"]
    ]
    for table in found["evaluations"]:
        rows = [
            {
                **({"rank": row["rank"]} if table["ranked"] else {}),
                "answers of": row["run"],
                str(table["score"] or "score"): format_score(row["value"]),
                "95 % interval": interval(row),
                "rows": row["n"],
            }
            for row in table["rows"]
        ]
        parts.append(plain_table(table["title"], rows))
        parts += [sentence for sentence in (unknown(table), verdict(table)) if sentence]
        parts += [
            f"  {test['second']} - {test['first']}: {test['bootstrap']['difference']:+.3f}, p {p_value(test['p_holm'])}"
            for test in table["tests"]
        ]
    parts += [f"not ranked: {reason}" for reason in found["reasons"]]
    if names := list(found["runs"]):
        costs = [{" ": label, **dict(zip(names, cells, strict=True))} for label, cells in cost_rows(found)]
        parts.append(plain_table("", costs))
    parts += [sentence] if (sentence := stages_sentence(found)) else []
    return "\n".join(parts).replace("\u00a0", " ")
