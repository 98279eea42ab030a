"""``mmtune plan``: the checks of a run, its plan, and the probe that corrects it."""

from __future__ import annotations

from typing import Any

import torch

from mmtune.core.errors import NotPossibleError
from mmtune.model.build import resolve_device
from mmtune.train.devices import planned_device
from mmtune.train.display import Display, LoggingDisplay
from mmtune.train.plan import plan
from mmtune.train.precision import choose_precision
from mmtune.train.probe import probe
from mmtune.train.recipe import Recipe, check_consistency, check_method_settings
from mmtune.train.weighing import refuse_oversize


def planned(
    recipe: Recipe,
    verb: str = "finetune",
    target: str = "auto",
    *,
    run_probe: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Plan a run for a device.

    Args:
        target: A name of ``devices.CARDS``, ``cpu``, or ``auto`` for what the recipe's own device is here.
        run_probe: Also load the model on this machine and train three steps on the largest micro-batch.

    Raises:
        UsageError: No such target.
        NotPossibleError: A probe for a device that is not here, or a model that decides by values.
        MMTuneError: Whatever the run itself would refuse.
    """
    check_consistency(recipe)
    check_method_settings(recipe)
    device = planned_device(target, recipe.run.device)
    here = target == "auto" or (target == "cpu" and recipe.run.device in ("auto", "cpu"))
    if run_probe and not here:
        raise NotPossibleError(
            f"A probe runs on this machine, the plan is for '{target}'.", where="--probe", fix="--target auto"
        )
    if run_probe and recipe.run.num_processes > 1 and recipe.run.strategy != "ddp":
        where = recipe.where("run.strategy")
        raise NotPossibleError(
            "A probe is one process; it cannot hold the shares of several.", where=where, fix="plan without --probe"
        )
    precision = recipe.train.precision
    if precision == "auto":
        precision = "fp32" if device.kind == "cpu" else "bf16"
        if target == "auto" and device.kind == "cuda":
            precision = choose_precision("auto", torch.device("cuda"))
    display = display or LoggingDisplay()
    found, rehearsed = plan(recipe, verb, device, precision, display, here=here)
    if run_probe:
        place = torch.device("cpu") if device.kind == "cpu" else resolve_device(recipe.run.device)
        refuse_oversize(recipe, precision, place)
        media = rehearsed.memory.media  # three steps on one micro-batch do not see those of other rows
        alone = rehearsed.memory.total - media
        found["probe"] = probe(recipe, verb, rehearsed.worst_rows, place, precision, alone, display)
        found["memory"]["total"] = found["probe"]["peak_bytes"] + media
        found["fits"] = found["memory"]["total"] <= device.usable
        found["seconds_estimate"] = round(found["steps"] * found["probe"]["seconds_per_step"], 1)
    return found
