"""Folders that `mmtune eval --output` wrote, named to be compared by themselves."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from mmtune.core.errors import DataError, UsageError, nearest
from mmtune.report.compare.evaluations import ITEMS, SCORES, Evaluation, evaluations_of, read_evaluation
from mmtune.report.compare.runs import check_several, tell_apart

_ANSWERS = "predictions.jsonl"


def are_evaluations(folders: Sequence[str | Path]) -> bool:
    """Whether these are outputs of evaluations; runs, also those that hold an evaluation, are not.

    Raises:
        UsageError: Some are outputs of evaluations and some are runs.
    """
    places = [Path(folder) for folder in folders]
    runs = [place for place in places if (place / "status.json").is_file()]
    evaluated = [place for place in places if _is_evaluation(place)]
    if len(runs) == len(places) or not evaluated:
        return False
    if only_runs := [place for place in runs if place not in evaluated]:
        raise UsageError(
            f"{only_runs[0]} is a run, {evaluated[0]} is the output of an evaluation.",
            where="RUN",
            fix=f"compare evaluations alone: {_instead(places, evaluated)}",
        )
    return True


def read_evaluations(folders: Sequence[str | Path]) -> dict[str, Evaluation]:
    """The evaluations of folders, called by the names of these, or by their paths where names repeat.

    Raises:
        UsageError: Fewer than two, or one named twice.
        DataError: A folder without the whole output of an evaluation.
    """
    places = [Path(folder) for folder in folders]
    check_several(places, "evaluation")
    found = [_read(place) for place in places]
    return dict(zip(tell_apart(places), found, strict=True))


def _is_evaluation(place: Path) -> bool:
    return (place / SCORES).is_file() or (place / _ANSWERS).is_file()


def _read(place: Path) -> Evaluation:
    if not _is_evaluation(place):
        raise DataError("This is no output of an evaluation.", where=str(place), fix=_near(place))
    if not (place / SCORES).is_file():
        fix = "type the same `mmtune eval` again, it goes on"
        raise DataError(
            f"The evaluation is not finished: there are answers and no {SCORES}.", where=str(place), fix=fix
        )
    evaluation = read_evaluation(place / SCORES)
    again = f"type the same `mmtune eval … --output {shlex.quote(str(place))}` again: answers are kept"
    if evaluation is None:
        raise DataError("These are no scores of an evaluation.", where=str(place / SCORES), fix=again)
    if not evaluation.items:
        raise DataError("The verdicts of the rows are missing.", where=str(place / ITEMS), fix=again)
    return evaluation


def _near(place: Path) -> str:
    siblings = place.parent.iterdir() if place.parent.is_dir() else ()
    guess = nearest(place.name, [entry.name for entry in siblings if (entry / SCORES).is_file()])
    written = f"name the folder of `mmtune eval --output`, which holds {SCORES}"
    return f"did you mean {shlex.quote(str(place.parent / guess))}?" if guess else written


def _instead(places: Sequence[Path], evaluated: Sequence[Path]) -> str:
    """What to type: each run's own evaluation of the same benchmark in its place, or how to make one."""
    benchmarks = {one.result["benchmark"] for place in evaluated if (one := read_evaluation(place / SCORES))}
    words = []
    for place in places:
        own = [one.folder for one in ([] if place in evaluated else evaluations_of(place)) if _is_of(one, benchmarks)]
        missing = place not in evaluated and not own
        words.append("DIR" if missing else shlex.quote(str(own[-1] if own else place)))
    command = f"mmtune compare {' '.join(words)}"
    if "DIR" not in words:
        return command
    name = min(benchmarks, default="NAME")
    return f"{command}, with DIR from mmtune eval --model RUN --benchmark {name} --data PATH --output DIR"


def _is_of(evaluation: Evaluation, benchmarks: set[str]) -> bool:
    return evaluation.result["benchmark"] in benchmarks
