"""The runs that are compared, read from their folders."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError, UsageError, nearest
from mmtune.report.quickstart import label
from mmtune.report.run import read_rows, run_parts


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        name: What it is called here; no two runs share it.
        recipe: As it was resolved.
        rows: Those of ``metrics.jsonl`` that are steps.
    """

    folder: Path
    name: str
    method: str
    recipe: dict[str, Any]
    status: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.folder / "model"


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read finished runs; they are called by their methods, or by their folders where methods repeat.

    Raises:
        UsageError: Fewer than two, or one named twice.
        DataError: A folder that is no run, or a run that is not finished.
    """
    places = [Path(folder) for folder in folders]
    check_several(places, "run")
    parts = [_parts(place) for place in places]
    methods = [str(found["recipe"].get("method") or found["status"].get("method")) for found in parts]
    names = tell_apart(places, [label(method) for method in methods])
    return [
        Run(place, name, method, found["recipe"], found["status"], _steps(place))
        for place, name, method, found in zip(places, names, methods, parts, strict=True)
    ]


def check_several(places: Sequence[Path], kind: str) -> None:
    """Check that there are two places or more, and no place twice.

    Args:
        kind: What is compared, for the words of an error.

    Raises:
        UsageError: There are not, or there is.
    """
    if len(places) < 2:
        raise UsageError(f"{len(places)} {kind} to compare.", where="RUN", fix=f"name two finished {kind}s or more")
    if len({place.absolute().resolve() for place in places}) < len(places):
        raise UsageError(f"The same {kind} is named twice.", where="RUN", fix=f"name every {kind} once")


def tell_apart(places: Sequence[Path], labels: Sequence[str] = ()) -> list[str]:
    """Names by which all places differ: their labels, else the names of the folders, else the paths."""
    for names in (list(labels), [place.name for place in places]):
        if len(set(names)) == len(places):
            return names
    return [str(place) for place in places]


def stages(run: Run) -> list[Run]:
    """The run with those before it, oldest first: each started from the model of the one before."""
    before = run_before(run)
    return [*(stages(before) if before is not None else ()), run]


def run_before(run: Run) -> Run | None:
    """The run whose model this one started from; None for fresh weights, and for weights that are of no run here."""
    checkpoint = (run.recipe.get("model") or {}).get("checkpoint")
    if checkpoint is None:
        return None
    own = run.folder.resolve()
    for folder in _places(Path(checkpoint), own):
        if (folder / "status.json").is_file() and folder.resolve() != own:
            found = run_parts(folder)
            if found["status"].get("status") == "completed" and not _ended_after(found["status"], run.status):
                method = str(found["recipe"].get("method"))
                return Run(folder, run.name, method, found["recipe"], found["status"], _steps(folder))
    return None


def _ended_after(status: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a run ended only after another: what stands in its folder now is not what that one started from."""
    times = [datetime.fromisoformat(one["time"]) for one in (status, other) if "time" in one]
    return len(times) == 2 and times[0] > times[1]


def _places(checkpoint: Path, own: Path) -> Iterator[Path]:
    """Where a run named from the working directory of its day may be now; what is near the run itself comes first."""
    for start in own.parents:
        yield from (start / checkpoint.parent, start / checkpoint)
    yield from (own.parent / checkpoint.parent.name, own.parent / checkpoint.name)  # moved together with the run
    yield from (checkpoint.parent, checkpoint)


def _parts(folder: Path) -> dict[str, Any]:
    found = run_parts(folder) if folder.is_dir() else {"status": {}, "recipe": {}}
    status = found["status"].get("status")
    if not status:
        raise DataError("This is no run: it has no readable status.json.", where=str(folder), fix=_near(folder))
    if status != "completed":
        step, steps = found["status"].get("step"), found["status"].get("total_steps")
        far = f" after step {step} of {steps}" if steps else ""
        command = found["command"] or f"mmtune {found['status'].get('verb', 'finetune')} … --output {folder}"
        raise DataError(f"The run is not finished: {status}{far}.", where=str(folder), fix=f"continue it: {command}")
    if not (folder / "model" / "config.json").is_file():
        raise DataError("The run has no model.", where=str(folder), fix="restore its folder model/, or train it anew")
    return found


def _near(folder: Path) -> str:
    siblings = folder.parent.iterdir() if folder.parent.is_dir() else ()
    runs = [entry.name for entry in siblings if (entry / "status.json").is_file()]
    guess = nearest(folder.name, runs)
    return f"did you mean {shlex.quote(str(folder.parent / guess))}?" if guess else "name the folder of a training run"


def _steps(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder / "metrics.jsonl") if "validation_loss" not in row]
