"""Three real steps on the largest micro-batch, to correct what was planned."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from mmtune.core.errors import ResourceError
from mmtune.core.memory import PeakMemory
from mmtune.model.batches import out_of_memory, to_device
from mmtune.train.apart import apart
from mmtune.train.data_setup import make_data
from mmtune.train.display import Display
from mmtune.train.feed import MicroBatch
from mmtune.train.model_setup import make_model
from mmtune.train.optim import make_optimizer, parameter_groups
from mmtune.train.precision import make_accelerator, seed_everything
from mmtune.train.recipe import Recipe

_STEPS = 3
_SMALLER = "--set train.gradient_checkpointing=true, or a smaller --batch-size"


def probe(
    recipe: Recipe,
    verb: str,
    rows: list[int],
    device: torch.device,
    precision: str,
    planned_bytes: int,
    display: Display,
) -> dict[str, Any]:
    """Load the model and train three steps on some rows; nothing is written.

    What grows is that of a process of its own, as a run is: the heap and the libraries of the one that planned would be
    there already.

    Args:
        rows: Indexes into the data's mixture.
        planned_bytes: What was expected of these steps, to be shown beside what is found.

    Raises:
        ResourceError: It does not fit, with the size that did not.
    """
    display.phase("probe")
    peak, seconds = apart(partial(_steps, recipe, verb, rows, device, precision), display, _SMALLER)
    return {
        "steps": _STEPS,
        "seconds_per_step": round(seconds, 4),
        "peak_bytes": peak,
        "planned_bytes": planned_bytes,
        "planned_over_measured": round(planned_bytes / max(peak, 1), 3),
    }


def _steps(
    recipe: Recipe, verb: str, rows: list[int], device: torch.device, precision: str, display: Display
) -> tuple[int, float]:
    """Most growth of memory in bytes, from before the model is built, and seconds of the fastest step."""
    seed_everything(recipe.train)
    with PeakMemory(device) as memory:
        model, processor = make_model(recipe, precision, device)
        groups = parameter_groups(model.roles(), recipe.train)
        accelerator = make_accelerator(recipe, precision, device)
        optimizer = accelerator.prepare_optimizer(make_optimizer(groups, recipe.train.betas, recipe.train.optimizer))
        data = make_data(recipe, verb, model, processor, device, display)
        found: MicroBatch = data.feed.encoding.collate([data.feed.encoding[row] for row in rows])
        if found.batch is None:
            raise found.rejected[0].error
        inputs = {key: to_device(value, device) for key, value in found.batch.items() if key != "ids"}
        model.train()
        seconds = []
        for _ in range(_STEPS):
            start = time.perf_counter()
            try:
                with accelerator.autocast():
                    loss = model(**inputs, target_logits_only=True).loss
                accelerator.backward(loss)
                optimizer.step()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise ResourceError(
                    f"{len(rows)} rows of {inputs['input_ids'].shape[1]} positions do not fit on {device}.",
                    where="--probe",
                    fix=_SMALLER,
                ) from error
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return memory.bytes, min(seconds)
