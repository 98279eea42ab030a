"""What a run was expected to take beside what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmtune.core.errors import MMTuneError
from mmtune.model.build import META
from mmtune.model.kinds import with_own_names
from mmtune.model.processing import MMTuneProcessor
from mmtune.train.data_setup import Data
from mmtune.train.footprint import kept_bytes, memory_of
from mmtune.train.model_setup import make_model
from mmtune.train.recipe import Recipe
from mmtune.train.rehearsal import Shape

_LOOKED_AT = 50  # rows of the data, to find what an item of each modality is


def foreseen(
    recipe: Recipe,
    precision: str,
    data: Data,
    processor: MMTuneProcessor,
    rows: Sequence[Mapping[str, Any]],
    device: torch.device,
    measured: int,
) -> dict[str, Any]:
    """Planned and measured growth of memory, in bytes; ``planned`` is None where nothing can be rehearsed.

    Args:
        rows: Of ``metrics.jsonl``; the largest step of them is rehearsed.
        measured: From before the model was built to the peak.
    """
    try:
        shape = _largest(recipe, data, processor, rows)
        if shape is None:
            return {"planned_bytes": None, "measured_bytes": measured}
        model, _ = make_model(recipe, precision, META)
        planned = memory_of(recipe, precision, model, shape, device.type, kept_bytes(data, shape))[0].total
    except (MMTuneError, RuntimeError):  # a model that cannot be rehearsed is still a good run
        planned = None
    return {"planned_bytes": planned, "measured_bytes": measured}


def _largest(recipe: Recipe, data: Data, processor: MMTuneProcessor, rows: Sequence[Mapping[str, Any]]) -> Shape | None:
    """The mean micro-batch of the step with most positions, each row with the media of an ordinary one."""
    steps = [row for row in rows if row.get("samples")]
    if not steps:
        return None
    areas = [row["tokens"] / max(1e-6, 1.0 - row.get("padding", 0.0)) for row in steps]
    step, area = max(zip(steps, areas, strict=True), key=lambda pair: pair[1])
    size, accumulation = recipe.run.num_processes, recipe.train.accumulation
    parts = accumulation if accumulation % size == 0 else accumulation * size  # as the processes share a step out
    count = max(1, round(step["samples"] / parts))
    packed = count if recipe.train.packing else 0
    owners = [0] * count if packed else list(range(count))
    media: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for index in range(min(_LOOKED_AT, len(data.feed.mixture))):
        for item in with_own_names(data.feed.mixture.row(index), processor.modalities).media:
            if item.modality not in media:
                media[item.modality] = (processor.modalities[item.modality].load(item.uri), owners)
    rows = 1 if packed else count
    positions, targets = max(1, round(area / parts / rows)), max(1, round(step["targets"] / parts))
    return Shape(rows, positions, targets, media, padded=step.get("padding", 0.0) > 0, packed=packed)
