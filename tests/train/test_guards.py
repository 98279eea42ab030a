"""What stops a run names rows, module and setting; a step can be seen again; a hang leaves stacks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmtune.core.errors import Interruption, NumericalError, UsageError
from mmtune.model.encoding import Batch, packed, row_lengths
from mmtune.train.guards import Watchdog, first_non_finite, first_non_finite_gradient, memory_error
from mmtune.train.recipe import Recipe
from mmtune.train.replay import replay
from mmtune.train.run import train
from mmtune.train.schema import TrainRecipe
from mmtune.train.step import Stepper

Make = Callable[..., Recipe]


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.third = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x)))


def test_the_first_module_that_breaks_is_named() -> None:
    model = Chain()
    x = torch.ones(1, 2)
    assert first_non_finite(model, lambda: model(x)) is None
    with torch.no_grad():
        model.second.weight[0, 0] = float("inf")
    assert first_non_finite(model, lambda: model(x)) == "second"
    assert not model.second._forward_hooks


def test_the_gradient_nearest_to_the_loss_is_named() -> None:
    model = Chain()
    model(torch.ones(1, 2)).sum().backward()
    assert first_non_finite_gradient(model) is None
    for weight in (model.first.weight, model.second.weight):
        weight.grad.fill_(float("nan"))  # type: ignore[union-attr]
    assert first_non_finite_gradient(model) == "second.weight"


@pytest.mark.parametrize(
    ("given", "rows", "fix"),
    [
        ({"batch_size": 8}, 8, "train.batch_size=4 --set train.accumulation=2"),
        ({"batch_size": 3, "accumulation": 2}, 3, "train.batch_size=1 --set train.accumulation=6"),
        ({"tokens_per_batch": 4096}, 5, "train.tokens_per_batch=2048"),
        ({"batch_size": 1}, 1, "data.max_length=5"),
    ],
)
def test_out_of_memory_names_the_setting(given: dict[str, Any], rows: int, fix: str) -> None:
    ids = torch.ones(rows, 10, dtype=torch.long)
    batch = Batch(ids=[f"row-{index}" for index in range(rows)], input_ids=ids, attention_mask=ids)
    error = memory_error(batch, 7, TrainRecipe(**given))
    assert fix in str(error.fix)
    assert (error.exit_code, "step 7" in error.message, "row-0" in str(error.where)) == (5, True, True)


def test_out_of_memory_with_packed_rows_tells_each_of_them() -> None:
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[0, 6:] = 0
    batch = Batch(ids=["a", "b"], input_ids=mask, attention_mask=mask, labels=mask)
    assert row_lengths(batch) == row_lengths(packed(batch)) == [6, 10]
    error = memory_error(packed(batch), 7, TrainRecipe(tokens_per_batch=40, packing=True))
    assert "2 rows of up to 10 tokens (lengths [6, 10])" in error.message
    assert "train.tokens_per_batch=20" in str(error.fix)


def test_a_packed_step_is_seen_again(recipe: Make, tmp_path: Path) -> None:
    result = train(recipe(train__packing=True, train__max_steps=2), output=tmp_path)
    seen = replay(tmp_path, 2, device="cpu")["replay"]
    assert (seen["same_rows"], len(seen["ids"])) == (True, 3)
    assert len(seen["lengths"]) == 3
    assert seen["loss"] == pytest.approx(result["loss"]["last"], abs=1e-6)


def test_a_step_of_shares_in_cpu_memory_is_seen_again_by_one_process(recipe: Make, tmp_path: Path) -> None:
    train(recipe(run__strategy="fsdp", run__offload=True, train__max_steps=1), output=tmp_path)
    assert replay(tmp_path, 1, device="cpu")["replay"]["same_rows"]


def test_a_broken_weight_stops_with_its_module(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Stepper.update

    def spoil(self: Stepper, batches: Any, targets: int, number: int, *more: Any) -> Any:
        if number == 3:
            with torch.no_grad():
                self._model.method.projector["image"].layers[0].weight.fill_(float("nan"))
        return original(self, batches, targets, number, *more)

    monkeypatch.setattr(Stepper, "update", spoil)
    with pytest.raises(NumericalError, match=r"loss of step 3 is nan; first in method\.projector\.image") as caught:
        train(recipe(), output=tmp_path)
    assert "row-" in str(caught.value.where)
    assert f"--replay {tmp_path} --step 3" in str(caught.value.fix)


def test_a_step_is_seen_again_with_the_same_numbers(recipe: Make, tmp_path: Path) -> None:
    train(recipe("vlora", tune__kind="lora", train__accumulation=2, save__every_steps=2), output=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    recorded = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for step in (2, 8):
        seen = replay(tmp_path, step)["replay"]
        assert (seen["loss"], seen["grad_norm"]) == (recorded[step - 1]["loss"], recorded[step - 1]["grad_norm"])
        assert seen["same_rows"] is True
        assert len(seen["ids"]) == len(seen["lengths"]) == recorded[step - 1]["samples"]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UsageError, match="has 8 steps"):
        replay(tmp_path, 9)
    with pytest.raises(UsageError, match="no run"):
        replay(tmp_path / "checkpoints", 1)


def test_a_hang_leaves_stacks(tmp_path: Path) -> None:
    path = tmp_path / "stacks.txt"
    with Watchdog(path, 0.1 / 60).watching():
        time.sleep(0.4)
    assert "test_a_hang_leaves_stacks" in path.read_text()
    quick = tmp_path / "quick.txt"
    with Watchdog(quick, 10).watching():
        pass
    assert not quick.exists()
    with Watchdog(quick, 10).watching():
        quick.unlink()  # by whoever clears the folder


def test_stacks_of_threads_at_work_do_no_harm(tmp_path: Path) -> None:
    def deep(left: int) -> int:
        return 0 if not left else deep(left - 1)

    with Watchdog(tmp_path / "stacks.txt", 1e-4 / 60).watching():
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            deep(50)
    assert (tmp_path / "stacks.txt").read_text().count("nothing has happened") > 5


def test_a_signal_does_not_wait_for_the_end_of_a_long_step(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step under way is given up at its next micro-batch, and done again bit by bit."""
    wanted = recipe("vlora", tune__kind="lora", train__accumulation=4, train__batch_size=1, save__every_steps=None)
    original, calls = Stepper._forward_backward, []

    def interrupted(self: Stepper, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == 10:  # the second micro-batch of the third step
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "_forward_backward", interrupted)
        with pytest.raises(Interruption, match="after step 2 of 8"):
            train(wanted, output=tmp_path / "run")
    assert len(calls) == 10
    assert train(wanted, output=tmp_path / "run")["resumed_from"] == 2
    train(wanted, output=tmp_path / "whole")
    for path in sorted((tmp_path / "whole/model").rglob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "run/model" / path.relative_to(tmp_path / "whole/model")).read_bytes()


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("changes", [{"tune__kind": "qlora"}, {"train__optimizer": "adamw_8bit", "tune__kind": "lora"}])
def test_few_bits_learn_and_go_on(
    changes: dict[str, Any], recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tiny import save_tiny_lm

    base = save_tiny_lm(tmp_path / "lm", hidden_size=64, intermediate_size=64, head_dim=16)
    wanted = recipe(**changes, model__base=base, save__every_steps=4)
    whole = train(wanted, output=tmp_path / "whole")
    assert whole["loss"]["last"] < whole["loss"]["first"]
    original = Stepper.update

    def fail(self: Stepper, batches: Any, targets: int, number: int, *more: Any) -> Any:
        if number == 7:
            raise RuntimeError("lost")
        return original(self, batches, targets, number, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "update", fail)
        with pytest.raises(RuntimeError):
            train(wanted, output=tmp_path / "run")
    assert train(wanted, output=tmp_path / "run")["resumed_from"] == 4
    for path in sorted((tmp_path / "whole/model").rglob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "run/model" / path.relative_to(tmp_path / "whole/model")).read_bytes()
