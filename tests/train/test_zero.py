"""ZeRO: what is refused, what the engine is told, and our loop around a stand-in of DeepSpeed's interface.

The engine itself runs in ``test_processes.py`` where DeepSpeed is installed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmtune.core.errors import MissingExtraError, NotPossibleError, NumericalError
from mmtune.methods import METHODS
from mmtune.testing.bench import open_bench
from mmtune.train.recipe import Recipe
from mmtune.train.run import train
from mmtune.train.step import Stepper
from mmtune.train.strategy import refuse_strategy
from mmtune.train.zero import ZeroModel
from tests.train.test_processes import assert_equal, crash_at

Make = Callable[..., Recipe]


def test_without_deepspeed_the_line_that_installs_it_is_shown(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmtune.train.zero.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        train(recipe(run__strategy="zero3"), output=tmp_path / "run")
    assert caught.value.exit_code == 4
    assert caught.value.fix == 'pip install "mmtune[deepspeed]"'
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("strategy", "changes", "precision", "word"),
    [
        ("zero3", {"train__roles": ["method", "encoder"]}, "fp32", "Encoders"),
        ("zero3", {"tune__kind": "lora", "tune__targets": "encoder-linear"}, "fp32", "Encoders"),
        ("zero3", {"method": "vlora", "train__gradient_checkpointing": True}, "fp32", "vlora"),
        ("zero3", {"method": "lavin", "train__gradient_checkpointing": True}, "fp32", None),
        ("zero3", {"method": "llava", "train__gradient_checkpointing": True}, "fp32", None),
        ("zero3", {"tune__kind": "qlora"}, "fp32", "Quantised"),
        ("zero3", {"tune__bits": 8}, "fp32", "Quantised"),
        ("zero2", {"train__optimizer": "adamw_8bit"}, "fp32", "8 bits"),
        ("zero2", {}, "fp16", "fp16"),
        ("zero2", {"train__compile": True}, "fp32", "compiles"),
        ("zero2", {"train__roles": ["method", "encoder"]}, "fp32", None),
        ("zero2", {"tune__kind": "qlora"}, "fp32", None),
        ("zero3", {"run__offload": True}, "bf16", None),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    strategy: str, changes: dict[str, Any], precision: str, word: str | None, recipe: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("mmtune.train.zero.find_spec", lambda name: True)
    asked = recipe(run__strategy=strategy, **changes)
    if word is None:
        refuse_strategy(asked, precision)
        return
    with pytest.raises(NotPossibleError, match=word) as caught:
        refuse_strategy(asked, precision)
    assert "run.strategy=" in str(caught.value.fix)


@pytest.mark.parametrize("method", METHODS.names())
def test_gradients_come_in_the_same_order_with_and_without_media(method: str) -> None:
    """ZeRO sends gradients in the order of their arrival: processes with other media must agree on it."""
    with open_bench(method) as bench:
        model = bench.model
        model.add_lora(rank=2)
        model.set_trainable(["method", "lora"])
        model.trains_in_team = True
        model.train()
        arrived: list[str] = []

        def note(name: str) -> Callable[[Tensor], None]:
            return lambda parameter: arrived.append(name)

        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(note(name))
        orders = []
        for rows in ([bench.row(0, [0])], [bench.row(1, [])], bench.ragged()):
            arrived.clear()
            model(**bench.batch(rows)).loss.backward()
            orders.append(list(arrived))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert set(orders[0]) == trained
        assert len(orders[0]) == len(trained)
        assert orders[0] == orders[1] == orders[2]


class Engine(nn.Module):
    """DeepSpeed's engine for one process: the same calls, and whole tensors."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.module, self.config, self.boundaries = model, config, []
        groups = [group["params"] for group in optimizer.param_groups]
        self.groups, self.norm = groups, 0.0
        flat = [torch.cat([parameter.detach().reshape(-1) for parameter in group]) for group in groups]
        for entry, part in zip(optimizer.param_groups, flat, strict=True):
            entry["params"] = [part.requires_grad_()]
        parts = [entry["params"][0] for entry in optimizer.param_groups]
        self.optimizer = SimpleNamespace(
            optimizer=optimizer, bit16_groups=groups, single_partition_of_fp32_groups=parts
        )
        for group, part in zip(groups, parts, strict=True):
            start = 0
            for parameter in group:
                parameter._hp_mapping = (part, start, optimizer)
                start += parameter.numel()

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.boundaries.append(is_boundary)

    def get_global_grad_norm(self) -> float:
        return self.norm

    def step(self) -> None:
        parameters = [parameter for group in self.groups for parameter in group]
        self.norm = float(nn.utils.clip_grad_norm_(parameters, self.config["gradient_clipping"] or math.inf))
        if math.isfinite(self.norm):
            for group, part in zip(self.groups, self.optimizer.single_partition_of_fp32_groups, strict=True):
                part.grad = torch.cat([parameter.grad.reshape(-1) for parameter in group])
            self.optimizer.optimizer.step()
        else:
            self.norm = math.inf
        for parameter in parameters:
            parameter.grad = None
            parameter.data.copy_(_slice(parameter, parameter._hp_mapping[0]))


def _slice(parameter: Tensor, flat: Tensor) -> Tensor:
    start = parameter._hp_mapping[1]  # type: ignore[attr-defined]
    return flat.detach()[start : start + parameter.numel()].view(parameter.shape)


def _state(parameter: Tensor, key: str) -> Tensor:
    part, _, optimizer = parameter._hp_mapping  # type: ignore[attr-defined]
    return _slice(parameter, optimizer.state[part][key])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """DeepSpeed as a few modules, and every run in an engine of its own."""
    engines: list[Engine] = []

    def initialize(*, model: nn.Module, optimizer: Any, config: Any, dist_init_required: bool) -> tuple[Engine]:
        assert not dist_init_required
        engines.append(Engine(model, optimizer, config))
        return (engines[-1],)

    utils = {
        "safe_get_full_optimizer_state": _state,
        "safe_set_full_optimizer_state": lambda parameter, value, key: _state(parameter, key).copy_(value),
        "safe_set_full_fp32_param": lambda parameter, value: _slice(parameter, parameter._hp_mapping[0]).copy_(value),
        "lazy_init_hp_params_optimizer_state": lambda group, part, state: None,
    }
    contents = {
        "deepspeed": {"initialize": initialize},
        "deepspeed.utils": utils,
        "deepspeed.accelerator": {"set_accelerator": lambda accelerator: None},
        "deepspeed.accelerator.cpu_accelerator": {"CPU_Accelerator": nullcontext},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("mmtune.train.zero.find_spec", lambda name: True)
    return engines


def in_engine(patch: pytest.MonkeyPatch) -> None:
    def spread(model: Any, groups: Any, recipe: Recipe, precision: str, team: Any, device: Any) -> nn.Module:
        model.trains_in_team = True
        return ZeroModel(model, groups, recipe, precision, device)

    patch.setattr("mmtune.train.run.spread", spread)


def test_the_loop_drives_an_engine_and_goes_on(
    recipe: Make, tmp_path: Path, stand_in: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates per role, decay, clipping, accumulation and a run that dies: all as without an engine."""
    settings: dict[str, Any] = {
        "tune__kind": "lora", "tune__dropout": 0.0, "train__accumulation": 2, "train__weight_decay": 0.1,
        "train__learning_rate": {"default": 1e-3, "lora": 5e-4}, "train__max_grad_norm": 0.3,
    }  # fmt: skip
    train(recipe("vlora", **settings), output=tmp_path / "plain")
    zero = recipe("vlora", **settings, run__strategy="zero2")
    with monkeypatch.context() as patch:
        in_engine(patch)
        with monkeypatch.context() as other:
            crash_at(other, 5)
            with pytest.raises(RuntimeError):
                train(zero, output=tmp_path / "shared")
        result = train(zero, output=tmp_path / "shared")
    assert result["resumed_from"] == 3
    assert_equal(tmp_path / "plain", tmp_path / "shared")
    assert stand_in[0].config["gradient_clipping"] == 0.3
    assert stand_in[0].config["zero_optimization"]["stage"] == 2
    assert stand_in[0].boundaries[:3] == [False, True, True]


def test_a_gradient_that_is_not_finite_ends_the_run(
    recipe: Make, tmp_path: Path, stand_in: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Stepper.gradients

    def spoil(self: Stepper, *given: Any) -> list[Tensor]:
        losses = original(self, *given)
        self._parameters[0].grad.fill_(math.inf)  # type: ignore[union-attr]
        return losses

    in_engine(monkeypatch)
    monkeypatch.setattr(Stepper, "gradients", spoil)
    with pytest.raises(NumericalError, match="gradient of step 1"):
        train(recipe(run__strategy="zero2"), output=tmp_path / "run")
