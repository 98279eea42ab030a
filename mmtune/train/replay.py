"""One step of a run again: the same rows, with the weights it had, looked at and not learnt from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError, UsageError
from mmtune.model.build import resolve_device
from mmtune.train.display import Display, LoggingDisplay
from mmtune.train.guards import Watchdog
from mmtune.train.interrupt import StopRequest
from mmtune.train.loop import Loop
from mmtune.train.recipe import resolve
from mmtune.train.run import Job
from mmtune.train.run_directory import RunDirectory, read_status
from mmtune.train.state import Checkpoint, find_checkpoint


def replay(folder: Path, step: int, *, device: str | None = None, display: Display | None = None) -> dict[str, Any]:
    """Rebuild step ``step`` of a run in this process; the run itself is left as it is.

    The newest whole checkpoint before the step gives the weights, and the steps between are done again, so that a run
    of one process meets the same numbers to the last bit.

    Returns:
        The JSON result of the verb, with what was seen under ``replay``.

    Raises:
        UsageError: No run, or it has no such step.
        DataError: The data is not what the run started with.
    """
    if not (folder / "recipe.yaml").is_file():
        raise UsageError("This is no run.", where=str(folder), fix="give the folder of a run: --replay runs/NAME")
    status = read_status(folder)
    verb = str(status.get("verb", "finetune"))
    recipe = resolve(verb, file=folder / "recipe.yaml", overrides={"run.device": device})
    alone = {"num_processes": 1, "strategy": "ddp", "offload": False, "trackers": []}
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update=alone)})
    job = Job(recipe, verb, resolve_device(recipe.run.device), display or LoggingDisplay())
    job.build()
    found, notes = find_checkpoint(folder / "checkpoints", before=step)
    for note in notes:
        job.display.note(note)
    with tempfile.TemporaryDirectory() as scratch:
        loop = job.make_loop(RunDirectory(Path(scratch)), StopRequest(), Watchdog(Path(scratch) / "stacks.txt", None))
        _check(folder, step, loop, found, job.data.fingerprint)
        if found is not None:
            loop.resume(found)
        job.display.note(f"step {step}, from the weights after step {loop.step}")
        seen = loop.look_at(step)
    recorded = next((row for row in RunDirectory(folder).rows() if row["step"] == step and "loss" in row), None)
    seen["recorded"] = None if recorded is None else {key: recorded[key] for key in ("loss", "grad_norm", "rows")}
    seen["same_rows"] = None if recorded is None else recorded["rows"] == seen["rows"]
    return {**job.result(folder, "dry_run"), "replay": seen}


def _check(folder: Path, step: int, loop: Loop, found: Checkpoint | None, data: str) -> None:
    if step > loop.total_steps:
        raise UsageError(
            f"The run has {loop.total_steps} steps, step {step} is asked for.",
            where="--step",
            fix=f"--step {loop.total_steps}",
        )
    if found is not None and found.state["data"] != data:
        raise DataError(
            "The data is not what this run started with.", where=str(folder), fix="restore the data of the run"
        )
