"""Two processes learn what one learns: the same losses and weights, one set of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmtune.methods import METHODS
from mmtune.train.recipe import Recipe
from mmtune.train.run import train
from mmtune.train.step import Stepper
from tests.train.conftest import write_rows
from tests.train.processes import train_together

Make = Callable[..., Recipe]
NEEDS_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed")
TOLERANCE = 1e-5
SETTINGS = {"lavin": {"model__settings": {"dropout": 0.0}}}  # processes draw dropout for their own rows


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "loss" in row]


def assert_equal(one: Path, two: Path) -> None:
    """The same rows, losses and final weights, and the same names of files."""
    first, second = rows(one), rows(two)
    assert len(first) == len(second) > 0
    for ours, theirs in zip(first, second, strict=True):
        for key in ("step", "samples", "tokens", "targets", "rows"):
            assert ours[key] == theirs[key]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE)
    files = {str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()}
    shared = {str(path.relative_to(two)) for path in two.rglob("*") if path.is_file()}
    reports = {name for name in files | shared if name.startswith("plots/") or name == "report.html"}
    assert files - reports == shared - reports
    for path in sorted((one / "model").rglob("*.safetensors")):
        ours, theirs = load_file(path), load_file(two / path.relative_to(one))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], atol=TOLERANCE, rtol=0)


def compare(recipes: dict[str, Recipe], folder: Path) -> None:
    """Train each recipe in one process and, shared out as it says, in two."""
    together = {folder / f"{name}-two": recipe for name, recipe in recipes.items()}
    for output, result in train_together(together).items():
        assert result.get("status") == "completed", (output, result)
    for name, recipe in recipes.items():
        train(recipe, output=folder / f"{name}-one")
        assert_equal(folder / f"{name}-one", folder / f"{name}-two")


def test_two_processes_equal_one(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank's rows are often all without pictures, some steps have fewer rows than processes.

    The third run begins in one process, which dies, and is ended by two.
    """
    mixed = [{"path": str(write_rows(tmp_path, count=11, text_only=6))}]
    shared: dict[str, Any] = {"data__train": mixed, "train__max_steps": 10, "save__every_steps": 4}
    recipes = {
        "ddp": recipe("vlora", **shared, train__accumulation=3, train__batch_size=1),
        "fsdp": recipe("llava", **shared, tune__kind="lora", tune__dropout=0.0, run__strategy="fsdp"),
        "taken-up": recipe("vlora", **shared, tune__kind="full", run__strategy="fsdp"),
        "kept": recipe(
            "llava", **{**shared, "train__max_steps": 3}, data__cache=str(tmp_path / "cache"), data__cache_features=True
        ),
        "encoder": recipe(
            "llava",
            **{**shared, "train__max_steps": 3},
            train__roles=["method", "encoder"],
            train__weight_decay=1.0,
            train__learning_rate={"default": 1e-3, "encoder": 1e-4},
        ),
    }
    with monkeypatch.context() as patch:
        crash_at(patch, 7)
        with pytest.raises(RuntimeError):
            train(recipes["taken-up"], output=tmp_path / "taken-up-two")
    compare(recipes, tmp_path)
    assert "2 processes instead of 1: not exact" in (tmp_path / "taken-up-two/log.txt").read_text()


def crash_at(patch: pytest.MonkeyPatch, step: int) -> None:
    original = Stepper.update

    def fail(self: Stepper, batches: Any, targets: int, number: int, *more: Any) -> Any:
        if number == step:
            raise RuntimeError("lost")
        return original(self, batches, targets, number, *more)

    patch.setattr(Stepper, "update", fail)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    ["ddp", "fsdp", pytest.param("zero2", marks=NEEDS_DEEPSPEED), pytest.param("zero3", marks=NEEDS_DEEPSPEED)],
)
def test_every_method_in_two_processes(strategy: str, recipe: Make, tmp_path: Path) -> None:
    mixed = [{"path": str(write_rows(tmp_path, count=11, text_only=6))}]
    recipes = {
        f"{method}-{kind}": recipe(
            method, data__train=mixed, train__max_steps=10, train__batch_size=4, run__strategy=strategy,
            tune__kind=kind, tune__dropout=0.0, train__accumulation=1 + (kind == "full"), **SETTINGS.get(method, {}),
        )
        for method in METHODS.names()
        for kind in ("method", "lora", "full")
    }  # fmt: skip
    compare(recipes, tmp_path)
