"""Runs or evaluations compared: one JSON object, and what the pages show besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.core.errors import UsageError
from mmtune.model.build import resolve_device
from mmtune.report.compare.budget import budget
from mmtune.report.compare.costs import costs, progress
from mmtune.report.compare.disagreement import Disagreement, disagreements
from mmtune.report.compare.evaluations import Evaluation, find_evaluations
from mmtune.report.compare.folders import are_evaluations, read_evaluations
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
        names: What the runs or evaluations are called, in the order in which they were given.
        result: The JSON object of the verb.
        curves: Loss and progress of every step, by name of the run.
        disagreements: Rows for the gallery.
    """

    names: list[str]
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
    """Read runs and their evaluations, and measure their models on this machine; or read evaluations alone.

    Args:
        folders: Finished runs, or outputs of evaluations, of whatever model; of these, scores alone are compared.
        picture: The picture that models are asked about; a drawn one unless given.
        device: Where they are measured.
        note: Is told what happens.

    Raises:
        UsageError: Fewer than two, one named twice, runs together with evaluations, or a picture for evaluations.
        DataError: A folder that is no finished run, and no finished evaluation either.
    """
    if are_evaluations(folders):
        if picture is not None:
            fix = "leave it out, or compare runs"
            raise UsageError("Evaluations have no speed that a picture would measure.", where="--image", fix=fix)
        return _of_evaluations(folders)
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
    judged, shown = _judged(found)
    curves = {run.name: progress(run, figures[run.name]["training_flops_per_sample"]) for run in runs}
    if not judged["evaluations"]:
        judged["reasons"] = [_none_found(runs)]
    result = {
        "runs": figures,
        "budget": budget(runs),
        **judged,
        "pareto": [plot for table in judged["evaluations"] for plot in pareto(table, figures)],
        "curves": {name: _thin(curve) for name, curve in curves.items()},
        "measurement": how(device, "drawn: one scene of the nano world" if picture is None else str(picture)),
    }
    return Compared([run.name for run in runs], result, curves, shown)


def _of_evaluations(folders: Sequence[str | Path]) -> Compared:
    """Scores, tests and disagreements; of costs and training nothing is known here."""
    found = read_evaluations(folders)
    judged, shown = _judged({name: [one] for name, one in found.items()})
    none: dict[str, Any] = {"runs": {}, "budget": None, "pareto": [], "curves": {}, "measurement": None}
    return Compared(list(found), none | judged, {}, shown)


def _judged(found: Mapping[str, Sequence[Evaluation]]) -> tuple[dict[str, Any], list[Disagreement]]:
    """What evaluations say, as the JSON of the verb has it, and the rows for the gallery."""
    made = tables(found)
    scores = [table_json(table) for table in made]
    shown, total = _disagreements(made)
    reasons = [f"{table['title']}: {reason}" for table in scores for reason in table["reasons"]]
    judged = {
        "ranked": bool(scores) and not reasons,
        "reasons": reasons,
        "evaluations": scores,
        "disagreements": {"total": total, "shown": [row.to_json() for row in shown]},
    }
    return judged, shown


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
