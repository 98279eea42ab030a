"""What a run took: time, memory, bytes and operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mmtune.core.errors import MMTuneError
from mmtune.report.compare.runs import Run, stages
from mmtune.report.compare.speed import Measured
from mmtune.train.display import SilentDisplay
from mmtune.train.files import folder_bytes
from mmtune.train.plan import rehearse_run, row_costs
from mmtune.train.recipe import resolve

_FROM_STATUS = ("trainable_parameters", "peak_memory_bytes", "device", "precision")
_SPENT = ("steps", "samples", "tokens", "seconds")


def costs(run: Run, measured: Measured) -> dict[str, Any]:
    """All figures of one run, those in training first; None where one is not known, with the reason in ``notes``.

    ``stages`` holds what the run and those before it spent, oldest first, and ``total`` their sums.
    """
    spent, notes = [], []
    for stage in stages(run):
        flops, reasons = training_flops_per_sample(stage)
        spent.append(_spent(stage, flops))
        notes += reasons
    return {
        "run": str(run.folder),
        "method": run.method,
        **{key: run.status.get(key) for key in _FROM_STATUS},
        "loss": (run.status.get("loss") or {}).get("last"),
        "checkpoint_bytes": folder_bytes(run.model),
        **{key: value for key, value in spent[-1].items() if key not in ("run", "verb")},
        "stages": spent,
        "total": {key: _sum([stage[key] for stage in spent]) for key in (*_SPENT, "training_flops")},
        **{key: value for key, value in asdict(measured).items() if key not in ("notes", "weights")},
        "notes": [*notes, *measured.notes],
    }


def _spent(run: Run, flops_per_sample: float | None) -> dict[str, Any]:
    samples = run.status.get("samples")
    return {
        "run": str(run.folder),
        "verb": run.status.get("verb"),
        **{key: run.status.get(key) for key in _SPENT},
        "training_flops_per_sample": flops_per_sample,
        "training_flops": flops_per_sample * samples if flops_per_sample and samples else None,
    }


def _sum(values: Sequence[float | None]) -> float | None:
    """The sum; None where a part is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def training_flops_per_sample(run: Run) -> tuple[float | None, list[str]]:
    """Operations of learning from a row of mean length, forward and backward, as ``mmtune plan`` counts them."""
    try:
        verb = str(run.status.get("verb") or "finetune")
        recipe = resolve(verb, file=run.folder / "recipe.yaml")
        rehearsed = rehearse_run(recipe, verb, str(run.status.get("precision") or "fp32"), SilentDisplay())
        return row_costs(rehearsed, recipe)[1].step_flops, []
    except MMTuneError as error:
        return None, [f"no training operations: {error.message}"]


def progress(run: Run, flops_per_sample: float | None) -> dict[str, list[float]]:
    """The loss of every step, and how far the run was: ``steps``, ``tokens``, ``seconds`` and ``flops``.

    ``flops`` is empty where operations are not known.
    """
    rows = [row for row in run.rows if isinstance(row.get("loss"), int | float)]
    samples = _sums([row.get("samples") for row in rows])
    found = {
        "loss": [float(row["loss"]) for row in rows],
        "steps": [float(row["step"]) for row in rows],
        "tokens": _sums([row.get("tokens") for row in rows]),
        "seconds": _sums([row.get("seconds") for row in rows]),
        "flops": [flops_per_sample * count for count in samples] if flops_per_sample else [],
    }
    return {name: values for name, values in found.items() if len(values) == len(rows) or name == "flops"}


def _sums(values: Sequence[float | None]) -> list[float]:
    """Running sums; nothing where a value was not recorded."""
    found: list[float] = []
    for value in values:
        if value is None:
            return []
        found.append((found[-1] if found else 0.0) + value)
    return found
