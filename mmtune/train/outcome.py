"""What a run comes to: the JSON of its verb, its table of components, and its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmtune.core.memory import peak_memory_bytes
from mmtune.model.modeling import MMTuneModel
from mmtune.model.processing import MMTuneProcessor
from mmtune.model.shares import num_elements
from mmtune.train.data_setup import Data
from mmtune.train.loop import Loop
from mmtune.train.metrics import Totals, first_and_last
from mmtune.train.optim import Group
from mmtune.train.recipe import Recipe
from mmtune.train.run_directory import RunDirectory

_SHOWN_ANSWERS = 8


def progress(run: RunDirectory | None, loop: Loop | None) -> dict[str, Any]:
    """How far a run is; the same keys, empty, for one that did nothing yet."""
    losses = [row["loss"] for row in run.rows() if row.get("loss") is not None] if run is not None else []
    totals = loop.totals if loop is not None else Totals()
    per_second = 1.0 / totals.seconds if totals.seconds else 0.0
    return {
        "steps": loop.step if loop is not None else 0,
        "samples": totals.samples,
        "tokens": totals.tokens,
        "loss": first_and_last(losses),
        "samples_per_second": round(totals.samples * per_second, 2),
        "tokens_per_second": round(totals.tokens * per_second, 2),
        "truncated": totals.truncated,
        "dropped_turns": totals.dropped_turns,
        "best": loop.saver.best if loop is not None else None,
    }


def result_of(
    recipe: Recipe,
    folder: Path,
    status: str,
    *,
    groups: Sequence[Group],
    data: Data,
    device: torch.device,
    seconds: float,
    run: RunDirectory | None = None,
    loop: Loop | None = None,
) -> dict[str, Any]:
    """The JSON of the verb."""
    totals = loop.totals if loop is not None else Totals()
    return {
        "run": str(folder),
        "model": str(run.model) if run is not None else None,
        "method": recipe.method,
        "status": status,
        **progress(run, loop),
        "trainable_parameters": sum(num_elements(p) for group in groups for p in group.parameters),
        "seconds": round(seconds + (loop.seconds_before if loop is not None else 0.0), 3),
        "peak_memory_bytes": peak_memory_bytes(device),
        "resumed_from": None,
        "rejected": totals.rejected + len(data.rejected),
        "device": str(device),
    }


def components(model: MMTuneModel, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The model's table with the peak learning rate of each part that is trained."""
    rates = {id(parameter): group.learning_rate for group in groups for parameter in group.parameters}
    rows = []
    for row in model.describe():
        found = sorted({rates[id(p)] for p in model.roles()[row["component"]] if id(p) in rates}, reverse=True)
        rows.append({**row, "learning_rate": ", ".join(f"{rate:g}" for rate in found) or "frozen"})
    return rows


def write_report(
    folder: Path,
    recipe: Recipe,
    model: MMTuneModel,
    processor: MMTuneProcessor,
    data: Data,
    table: list[dict[str, Any]],
) -> None:
    """Plots and ``report.html``, with answers to validation rows where one process has the whole model."""
    from mmtune.report.answers import answer_samples
    from mmtune.report.gallery import spread
    from mmtune.report.run import write_run_report

    shares = model.trains_in_team and recipe.run.strategy != "ddp"
    rows = data.validation.mixture if data.validation is not None and not shares else None
    samples = [rows.row(index) for index in spread(_SHOWN_ANSWERS, len(rows))] if rows is not None else []
    shown = answer_samples(model, processor, samples, template=recipe.data.template)
    write_run_report(folder, components=table, shown=shown)
