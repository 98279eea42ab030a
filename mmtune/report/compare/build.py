"""Runs compared: one JSON object, and what the pages show besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.model.build import resolve_device
from mmtune.report.compare.budget import budget
from mmtune.report.compare.costs import costs, progress
from mmtune.report.compare.disagreement import Disagreement, disagreements
from mmtune.report.compare.evaluations import Evaluation, find_evaluations
from mmtune.report.compare.pareto import pareto
from mmtune.report.compare.ranking import Table, table_json, tables
from mmtune.report.compare.runs import Run, read_runs
from mmtune.report.compare.speed import how, measure

_SHOWN = 12
_POINTS = 100  # of a curve in the JSON


@dataclass(frozen=True)
class Compared:
    """A comparison.

    Attributes:
        result: The JSON object of the verb.
        curves: Loss and progress of every step, by name of the run.
        disagreements: Rows for the gallery.
    """

    runs: list[Run]
    result: dict[str, Any]
    curves: dict[str, dict[str, list[float]]]
    disagreements: list[Disagreement]


def compare(
    folders: Sequence[str | Path],
    *,
    picture: str | Path | None = None,
    device: str = "auto",
    note: Callable[[str], None] | None = None,
) -> Compared:
    """Read runs and their evaluations, and measure their models on this machine.

    Args:
        folders: Finished runs.
        picture: The picture that models are asked about; a drawn one unless given.
        device: Where they are measured.
        note: Is told what happens.

    Raises:
        UsageError: Fewer than two runs, or one named twice.
        DataError: A folder that is no finished run.
    """
    runs = read_runs(folders)
    say = note or (lambda text: None)
    device = str(resolve_device(device))
    asked = picture if picture is not None else _drawn()
    figures: dict[str, dict[str, Any]] = {}
    found: dict[str, list[Evaluation]] = {}
    say("measuring " + ", ".join(run.name for run in runs))
    measured = measure({run.name: run.model for run in runs}, asked, device)
    for run in runs:
        say(f"{run.name}: counting operations")
        figures[run.name] = costs(run, measured[run.name])
        found[run.name], notes = find_evaluations(run, measured[run.name].weights)
        figures[run.name]["notes"] += notes
    made = tables(found)
    scores = [table_json(table) for table in made]
    shown, total = _disagreements(made)
    curves = {run.name: progress(run, figures[run.name]["training_flops_per_sample"]) for run in runs}
    reasons = [f"{table['title']}: {reason}" for table in scores for reason in table["reasons"]]
    result = {
        "runs": figures,
        "budget": budget(runs),
        "ranked": bool(scores) and not reasons,
        "reasons": reasons or ([] if scores else [_none_found(runs)]),
        "evaluations": scores,
        "disagreements": {"total": total, "shown": [row.to_json() for row in shown]},
        "pareto": [plot for table in scores for plot in pareto(table, figures)],
        "curves": {name: _thin(curve) for name, curve in curves.items()},
        "measurement": how(device, "drawn: one scene of the nano world" if picture is None else str(picture)),
    }
    return Compared(runs, result, curves, shown)


def _drawn() -> Any:
    from mmtune.nano.world.draw import draw_example

    return draw_example()


def _none_found(runs: Sequence[Run]) -> str:
    return f"no evaluation was found: mmtune eval --model {runs[0].folder} --benchmark NAME --data PATH, for every run"


def _disagreements(made: Sequence[Table]) -> tuple[list[Disagreement], int]:
    """Of the tables that are ranked, the same number of each."""
    ranked = [table for table in made if table.ranked]
    shown: list[Disagreement] = []
    total = 0
    for table in ranked:
        rows, count = disagreements(table, max(1, _SHOWN // len(ranked)))
        shown, total = shown + rows, total + count
    return shown, total


def _thin(curve: dict[str, list[float]]) -> dict[str, list[float]]:
    stride = max(1, -(-len(curve["loss"]) // _POINTS))
    return {name: values[::stride] for name, values in curve.items()}
