"""What a model is to weigh, asked of its sizes alone: a slip in a setting is told before any of it is made."""

from __future__ import annotations

from typing import Any

import torch

from mmtune.core.errors import MMTuneError, ResourceError
from mmtune.core.memory import memory_in_all
from mmtune.model.build import META
from mmtune.model.modeling import MMTuneModel
from mmtune.train.footprint import held_bytes
from mmtune.train.model_setup import make_model
from mmtune.train.recipe import Recipe

_GB = 1e9


def refuse_oversize(recipe: Recipe, precision: str, device: torch.device) -> None:
    """Say no to a model that the device could not even hold, whatever is learnt and however small the batches are.

    Raises:
        ResourceError: Weights, gradients and moments are together more than all the memory there is.
    """
    try:
        model, _ = make_model(recipe, precision, META)
        held = held_bytes(recipe, precision, model)
    except (MMTuneError, RuntimeError):  # told where the model itself is made
        return
    training, there = held.gradients + held.optimizer, memory_in_all(device)
    if held.weights + training <= there:
        return
    largest = max(model.describe(), key=lambda row: int(row["parameters"]))
    key = _key(largest)
    place = recipe.where(key)
    raise ResourceError(
        f"Weights take {held.weights / _GB:,.1f} GB, {largest['parameters']:,} numbers of them in "
        f"'{largest['component']}', and their gradients and moments {training / _GB:,.1f} GB; "
        f"{device.type} has {there / _GB:,.1f} GB in all.",
        where=place if key in place else f"{place} ({key})",
        fix=f"{_remedy(key, recipe, model)}; mmtune plan shows what takes how much",
    )


def _key(row: dict[str, Any]) -> str:
    """The setting that a component's size comes from."""
    part, _, name = str(row["component"]).partition(".")
    if part == "encoder":
        return "model.vision" if name == "image" else f"model.encoders.{name}"
    return {"lora": "tune.rank", "language": "model.base"}.get(part, "model.settings")


def _remedy(key: str, recipe: Recipe, model: MMTuneModel) -> str:
    if key == "tune.rank":
        return "a smaller tune.rank"
    if key == "model.settings":
        return f"smaller sizes in model.settings of {model.config.method}"
    if key == "model.base" and recipe.tune.kind == "full":
        return "--tune lora or qlora, or a smaller --base"
    return f"--tune qlora, or a smaller {'--base' if key == 'model.base' else 'encoder'}"
