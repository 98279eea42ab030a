"""What a run will take, before anything is loaded: memory by kind, operations, steps, time and disk.

The model is built on the meta device and one step of the real data's largest micro-batch is rehearsed there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmtune.core.errors import DataError
from mmtune.model.build import META
from mmtune.model.kinds import with_own_names
from mmtune.model.modeling import MMTuneModel
from mmtune.model.processing import MMTuneProcessor
from mmtune.train.batching import RowLengths
from mmtune.train.data_setup import Data, make_data
from mmtune.train.devices import CARDS, Device
from mmtune.train.display import Display
from mmtune.train.footprint import Memory, kept_bytes, memory_of, rows_of_process
from mmtune.train.model_setup import make_model
from mmtune.train.recipe import Recipe
from mmtune.train.refusals import is_possible, refuse_planned
from mmtune.train.rehearsal import Cost, Shape, rehearse

_FLOAT32, _MOMENTS = 4, 2  # as a checkpoint keeps what is trained and what AdamW knows of it
_UTILISATION = 0.4  # share of the peak rate that training reaches when nothing else is in its way


@dataclass(frozen=True)
class Rehearsed:
    """A model and its data as they were planned.

    Attributes:
        worst: Sizes of the largest micro-batch.
        cost: Of a step with it.
    """

    model: MMTuneModel
    data: Data
    lengths: RowLengths
    worst: Shape
    worst_rows: list[int]
    cost: Cost
    memory: Memory
    trainable: int


def plan(
    recipe: Recipe, verb: str, device: Device, precision: str, display: Display, *, here: bool = True
) -> tuple[dict[str, Any], Rehearsed]:
    """The JSON of ``mmtune plan``, without a probe, and what it is made of.

    Args:
        precision: fp32, bf16 or fp16, as the run will compute on this device.
        here: Whether the run is to be on this machine.

    Raises:
        NotPossibleError: A model that cannot be rehearsed.
        MMTuneError: Whatever the run itself would refuse.
    """
    refuse_planned(recipe, device.kind, precision, here=here)
    found = rehearse_run(recipe, verb, precision, display, device.kind)
    one, mean = row_costs(found, recipe)
    steps, positions = _extent(recipe, found)
    per_position = found.cost.step_flops / (found.worst.rows * found.worst.positions)
    devices = [*([] if device.name in CARDS else [device]), *CARDS.values()]
    fits = [_fit(card, found, one) for card in devices]
    own = next(row for row in fits if row["device"] == device.name)
    possible = partial(is_possible, kind=device.kind, precision=precision, here=here)
    values = {
        "fits": own["fits"],
        "device": device.name,
        "device_bytes": device.memory,
        "precision": precision,
        "memory": asdict(found.memory),
        "trainable_parameters": found.trainable,
        "parameters": sum(parameter.numel() for parameter in found.model.parameters()),
        "batch": {"rows": found.worst.rows, "positions": found.worst.positions, "targets": found.worst.targets},
        "flops_per_sample": mean.forward_flops,
        "flops": {
            "language_side": mean.forward_flops - mean.encoder_flops,
            "encoder": mean.encoder_flops,
            "training_step": found.cost.step_flops,
        },
        "lengths": _histogram(found.lengths),
        "steps": steps,
        "seconds_estimate": round(per_position * positions / (device.rate * _UTILISATION), 1),
        "disk_bytes": _disk(recipe, found.trainable),
        "devices": fits,
        "advice": _advice(recipe, own, any(row["fits"] for row in fits), possible),
        "probe": None,
    }
    return values, found


def rehearse_run(recipe: Recipe, verb: str, precision: str, display: Display, kind: str = "cpu") -> Rehearsed:
    """Build the model without weights, read the data's lengths, and rehearse the largest micro-batch."""
    display.phase("model")
    model, processor = make_model(recipe, precision, META)
    display.phase("data")
    data = make_data(recipe, verb, model, processor, torch.device("cpu"), display)
    lengths = data.measure()
    largest = _largest(data, lengths)
    rows = sorted(largest, key=lambda row: -int(lengths.positions[row]))[: rows_of_process(recipe, len(largest))]
    worst = _shape(data, lengths, rows, processor, packing=recipe.train.packing)
    display.phase("rehearsal")
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    memory, cost = memory_of(recipe, precision, model, worst, kind, kept_bytes(data, worst))
    return Rehearsed(model, data, lengths, worst, rows, cost, memory, trainable)


def _largest(data: Data, lengths: RowLengths) -> list[int]:
    """The rows of the first epoch's largest micro-batch."""
    packed = data.feed.batching.packed
    batches = data.feed.micro_batches(0)
    if not batches:
        raise DataError("The data has no rows.", fix="give data with conversations")
    return max(batches, key=lambda rows: _area(lengths, rows, packed))


def _area(lengths: RowLengths, rows: Sequence[int], packed: bool) -> int:
    """Positions that a micro-batch computes, padding included."""
    positions = lengths.positions[list(rows)]
    return int(positions.sum()) if packed else len(rows) * int(positions.max())


def _shape(data: Data, lengths: RowLengths, rows: Sequence[int], processor: MMTuneProcessor, *, packing: bool) -> Shape:
    """The sizes of some rows; of each modality one item is opened, the others are taken to be like it."""
    owners: dict[str, list[int]] = {}
    items: dict[str, dict[str, Tensor]] = {}
    for place, index in enumerate(rows):
        for item in with_own_names(data.feed.mixture.row(index), processor.modalities).media:
            if item.modality not in items:
                items[item.modality] = processor.modalities[item.modality].load(item.uri)
            owners.setdefault(item.modality, []).append(0 if packing else place)
    positions, targets = lengths.positions[list(rows)], max(1, int(lengths.targets[list(rows)].sum()))
    media = {name: (items[name], owners[name]) for name in items}
    if packing:
        return Shape(1, int(positions.sum()), targets, media, packed=len(rows))
    return Shape(len(rows), int(positions.max()), targets, media, padded=bool((positions < positions.max()).any()))


def row_costs(found: Rehearsed, recipe: Recipe) -> tuple[Cost, Cost]:
    """Of the longest row alone, and of a row of mean length with the media that a row of the worst batch has."""
    worst, rows = found.worst, found.worst.samples
    first = {name: (raw, [0] * max(1, len(owners) // rows)) for name, (raw, owners) in worst.media.items()}
    one = Shape(1, -(-worst.rows * worst.positions // rows), max(1, worst.targets // rows), first, padded=worst.padded)
    typical = replace(
        one,
        positions=max(1, round(float(found.lengths.positions.mean()))),
        targets=max(1, round(float(found.lengths.targets.mean()))),
    )
    alone = found.cost if rows == 1 else rehearse(found.model, one, checkpointing=recipe.train.gradient_checkpointing)
    return alone, rehearse(found.model, typical)


def _extent(recipe: Recipe, found: Rehearsed) -> tuple[int, float]:
    """Optimizer steps of the run, and the positions it computes, padding included."""
    by_epochs = found.data.feed.total_steps(recipe.train.epochs)
    steps = min(by_epochs, recipe.train.max_steps or by_epochs)
    feed = found.data.feed
    positions = sum(_area(found.lengths, rows, feed.batching.packed) for rows in feed.micro_batches(0) if rows)
    return steps, positions * steps / found.data.feed.steps_per_epoch


def _histogram(lengths: RowLengths) -> dict[str, int]:
    ordered = sorted(int(length) for length in lengths.positions)
    shares = (5, 50, 95, 99)
    return {
        "rows": len(ordered),
        "mean": round(sum(ordered) / len(ordered)),
        **{f"p{share}": ordered[min(len(ordered) - 1, share * len(ordered) // 100)] for share in shares},
        "max": ordered[-1],
    }


def _needed(memory: Memory, device: Device) -> int:
    """What counts on a device: accelerators have no heap of the C library, and a reserve for their own libraries."""
    return memory.total if device.kind == "cpu" else memory.tensors


def _fit(device: Device, found: Rehearsed, one: Cost) -> dict[str, Any]:
    """Whether the plan fits a device, and how many of the longest rows would."""
    rows = found.worst.samples
    holes = found.memory.holes / max(1, found.cost.activations + found.cost.logits) if device.kind == "cpu" else 0.0
    whole, alone = ((cost.activations + cost.logits) * (1 + holes) for cost in (found.cost, one))
    each = (whole - alone) / (rows - 1) if rows > 1 else alone
    needed = _needed(found.memory, device)
    most = math.floor((device.usable - (needed - whole) - alone) / each) + 1 if each > 0 else 0
    return {
        "device": device.name,
        "memory": device.memory,
        "fits": needed <= device.usable,
        "batch_size": max(0, most),
    }


def _advice(recipe: Recipe, own: dict[str, Any], anywhere: bool, possible: Callable[..., bool]) -> list[str]:
    """What to change, the least costly first, where a plan does not fit its device; nothing that a run refuses.

    Args:
        possible: Whether a run of a recipe with changed sections would not be refused.
    """
    if own["fits"]:
        return []
    size = recipe.run.num_processes
    rows = own["batch_size"] * (1 if recipe.train.accumulation % size == 0 else size)
    given = recipe.train.tokens_per_batch is None
    found = [f"--batch-size {rows}"] if rows and given else []
    if not rows or not given:
        found += [] if given else ["a smaller train.tokens_per_batch"]
        changes: list[tuple[str, dict[str, Any]]] = []
        if not recipe.train.gradient_checkpointing:
            changes.append(("--set train.gradient_checkpointing=true", {"train": {"gradient_checkpointing": True}}))
        smaller = {"full": "lora", "lora": "qlora"}.get(recipe.tune.kind)
        if smaller is not None:
            changes.append((f"--tune {smaller}", {"tune": {"kind": smaller}}))
        if recipe.run.strategy == "ddp":
            more, run = max(2, 2 * size), {"strategy": "fsdp", "num_processes": max(2, 2 * size)}
            changes.append((f"--num-processes {more} --set run.strategy=fsdp", {"run": run}))
        found += [text for text, sections in changes if possible(recipe, sections)]
        found += ["a smaller data.max_length"] if not anywhere else []
    return found


def _disk(recipe: Recipe, trainable: int) -> int:
    """Checkpoints that are kept, the one being written, the best, and the model itself."""
    checkpoint = trainable * _FLOAT32 * (1 + _MOMENTS)
    return checkpoint * (recipe.save.keep + 1) + 2 * trainable * _FLOAT32
