"""Sizes that no machine has are refused by numbers, before anything of them is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune.core.errors import RecipeError, ResourceError
from mmtune.core.memory import PeakMemory, memory_in_all
from mmtune.train.planning import planned
from mmtune.train.recipe import Recipe, check_method_settings
from mmtune.train.run import train
from tests.train.conftest import VLORA

Make = Callable[..., Recipe]
CPU = torch.device("cpu")
ABSURD: list[tuple[str, dict[str, Any], str]] = [
    ("llava", {"tune__kind": "lora", "tune__rank": 2**20}, "tune.rank"),
    ("vlora", {"model__settings": {**VLORA, "dim": 2**20}}, "model.settings"),
    ("vlora", {"model__settings": {**VLORA, "rank": 2**20}}, "model.settings"),
    ("lavin", {"model__settings": {"tokens": 2**20, "hidden": 2**10}}, "model.settings"),
]


@pytest.mark.parametrize(("method", "changes", "key"), ABSURD)
def test_nothing_is_made_of_an_absurd_size(
    method: str, changes: dict[str, Any], key: str, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmtune.train.weighing.memory_in_all", lambda device: 10**8)
    with PeakMemory(CPU) as grown, pytest.raises(ResourceError, match=r"0\.1 GB in all") as caught:
        train(recipe(method, **changes), output=tmp_path / "run")
    assert caught.value.exit_code == 5
    assert key in f"{caught.value.where} {caught.value.fix}"
    assert grown.bytes < 10**8
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["status"], status["error"]["exit"]) == ("failed", 5)


@pytest.mark.parametrize(
    ("room", "changes", "where"),
    [
        (10**5, {"tune__kind": "full"}, "--tune lora"),
        (10**5, {}, "--tune qlora"),
    ],
)
def test_what_is_too_large_is_named_with_a_way_out(
    room: int, changes: dict[str, Any], where: str, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmtune.train.weighing.memory_in_all", lambda device: room)
    with pytest.raises(ResourceError, match=r"'language'|'encoder\.image'") as caught:
        train(recipe(**changes), output=tmp_path / "run", dry_run=True)
    assert where in str(caught.value.fix)


def test_a_plan_of_it_says_that_it_does_not_fit(recipe: Make) -> None:
    with PeakMemory(CPU) as grown:
        found = planned(recipe(tune__kind="lora", tune__rank=2**20))
    assert not found["fits"]
    assert found["memory"]["weights"] > 10 * grown.bytes


@pytest.mark.parametrize(
    ("method", "settings", "key"),
    [
        ("vlora", {"rank": 10**12}, "rank"),
        ("vlora", {"depth": 10**9}, "depth"),
        ("lavin", {"adapter_dim": 1}, "adapter_dim"),
        ("lavin", {"adapter_dim": 10**9}, "adapter_dim"),
        ("multi_token", {"projectors": {"image": {"layers": 10**9}}}, "layers"),
    ],
)
def test_sizes_beyond_counting_are_no_settings(method: str, settings: dict[str, Any], key: str, recipe: Make) -> None:
    with pytest.raises(RecipeError, match="should be") as caught:
        check_method_settings(recipe(method, model__settings=settings))
    assert key in str(caught.value.where)


def test_a_rank_that_says_no_more_is_told(recipe: Make, tmp_path: Path) -> None:
    """As with PEFT it may be any; the tiny base is 32 wide."""
    train(recipe(tune__kind="lora", tune__rank=33, train__max_steps=1), output=tmp_path / "run")
    assert "tune.rank 33 says no more than 32" in (tmp_path / "run/log.txt").read_text()
    train(recipe(tune__kind="lora", tune__rank=32, train__max_steps=1), output=tmp_path / "other")
    assert "says no more" not in (tmp_path / "other/log.txt").read_text()


def test_this_machine_has_memory() -> None:
    assert memory_in_all() > 10**8
