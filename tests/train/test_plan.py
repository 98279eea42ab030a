"""What is planned on the meta device is what real tensors take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmtune.core.errors import NotPossibleError, UsageError
from mmtune.train.meter import Meter
from mmtune.train.model_setup import make_model
from mmtune.train.planning import planned
from mmtune.train.recipe import Recipe
from mmtune.train.rehearsal import Shape, rehearse
from mmtune.train.run import train
from tests.tiny import VOCAB_SIZE

Make = Callable[..., Recipe]
KEYS = {
    "fits", "device", "memory", "trainable_parameters", "flops_per_sample", "steps", "seconds_estimate", "disk_bytes",
    "probe",
}  # fmt: skip


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10))


def test_the_meter_counts_what_is_alive_and_what_it_costs() -> None:
    with torch.device("meta"):
        model, x = layers(), torch.empty(50, 100)
    with Meter(model.parameters()) as meter:
        y = model(x).sum()
        assert meter.kept == 4 * 50 * 200 + 4  # the result of ReLU is kept for backward, and the sum
        assert meter.flops == 2 * 50 * (100 * 200 + 200 * 10)
        y.backward()
    assert meter.flops == 2 * 50 * (2 * 100 * 200 + 3 * 200 * 10)  # the input needs no gradient
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert meter.kept == 4
    assert meter.peak < meter.peak_with_gradients <= meter.peak + weights


def test_attention_keeps_no_scores() -> None:
    with torch.device("meta"):
        q = torch.empty(2, 4, 1000, 8, requires_grad=True)
    with Meter() as meter:
        result = nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        assert meter.flops == 4 * 2 * 4 * 1000 * 1000 * 8
        result.sum().backward()
    assert meter.peak < 2 * 4 * 1000 * 1000 * 4 / 4
    assert q.grad is not None


def saved_bytes(model: Any, batch: dict[str, Any]) -> int:
    """What autograd keeps of a real forward pass, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in [*model.parameters(), *model.buffers()]}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch, target_logits_only=True).loss
    del loss
    return sum(seen.values())


@pytest.mark.parametrize("method", ["llava", "multi_token", "vlora", "lavin"])
@pytest.mark.parametrize("kind", ["method", "lora"])
def test_activations_are_those_that_autograd_keeps(method: str, kind: str, recipe: Make) -> None:
    named = recipe(method, tune__kind=kind, data__template="vlora")
    empty, _ = make_model(named, "fp32", torch.device("meta"))
    model, _ = make_model(named, "fp32", torch.device("cpu"))
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    shapes = [{name: tuple(p.shape) for name, p in made.named_parameters()} for made in (empty, model)]
    assert shapes[0] == shapes[1]
    slots = empty.method.placeholders("image", empty.modalities["image"].num_positions)
    rows, length = 4, 96
    pixels = torch.randn(rows, *empty.modalities["image"].load(_picture())["pixel_values"].shape)
    ids = torch.randint(4, VOCAB_SIZE, (rows, length))
    ids[:, 1 : 1 + slots] = model.placeholder_ids["image"]
    labels = ids.clone()
    labels[:, : length // 2] = -100
    batch = {"input_ids": ids, "labels": labels}
    media = {"image": {"pixel_values": pixels, "owner": torch.arange(rows)}}
    raw = empty.modalities["image"].load(_picture())
    cost = rehearse(empty, Shape(rows, length, rows * (length // 2), {"image": (raw, list(range(rows)))}))
    measured = saved_bytes(model.train(), {**batch, "media": media})
    assert measured * 0.9 < cost.activations + cost.logits < measured * 1.6  # the peak is above what is kept


def _picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (20, 16), "red")


def test_checkpointing_keeps_less_and_computes_more(recipe: Make) -> None:
    costs = []
    for checkpointing in (False, True):
        named = recipe("vlora", tune__kind="lora", train__gradient_checkpointing=checkpointing)
        model, _ = make_model(named, "fp32", torch.device("meta"))
        costs.append(rehearse(model, Shape(4, 256, 8), checkpointing=checkpointing))
    assert costs[1].activations < costs[0].activations
    assert costs[1].step_flops > 1.2 * costs[0].step_flops
    assert costs[1].forward_flops == costs[0].forward_flops


def test_a_plan_has_the_keys_of_the_contract(recipe: Make, tmp_path: Path) -> None:
    named = recipe(train__max_steps=None, train__epochs=2, data__cache=str(tmp_path))
    found = planned(named, target="h200")
    assert set(found) >= KEYS
    assert found["fits"] is True
    assert found["steps"] == 8
    memory = found["memory"]
    assert memory["total"] >= memory["weights"] + memory["optimizer"] + memory["logits"]
    assert memory["optimizer"] == 8 * found["trainable_parameters"] == 2 * memory["gradients"]
    assert found["probe"] is None
    sizes = {row["device"]: row["batch_size"] for row in found["devices"]}
    assert sizes["h200"] > sizes["a100-40g"] > sizes["t4-16g"] > 0
    many = planned(recipe(train__batch_size=12, data__cache=str(tmp_path)), target="h200")
    assert many["memory"]["activations"] > 2 * memory["activations"]
    assert many["memory"]["weights"] == memory["weights"]


def test_a_probe_runs_three_steps_and_corrects(recipe: Make, tmp_path: Path) -> None:
    found = planned(recipe(data__cache=str(tmp_path)), target="cpu", run_probe=True)
    assert found["probe"]["steps"] == 3
    assert found["probe"]["peak_bytes"] + found["memory"]["media"] == found["memory"]["total"]
    assert 0.8 < found["probe"]["planned_over_measured"] < 1.25  # in a process of its own it pays for libraries too


def test_refusals(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="h200"):
        planned(recipe(), target="h2000")
    with pytest.raises(NotPossibleError, match="this machine"):
        planned(recipe(), target="h200", run_probe=True)
    with pytest.raises(NotPossibleError, match="shares"):
        planned(recipe(run__num_processes=2, run__strategy="fsdp"), target="cpu", run_probe=True)


@pytest.mark.whole
def test_a_run_tells_what_was_planned_and_what_it_took(recipe: Make, tmp_path: Path) -> None:
    found = train(recipe("vlora", data__template="vlora"), output=tmp_path / "run")["memory"]
    assert found["planned_bytes"] > 0
    assert found["measured_bytes"] >= 0
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["memory"] == found
    page = (tmp_path / "run/report.html").read_text()
    assert "MiB were planned" in page or not found["measured_bytes"]
