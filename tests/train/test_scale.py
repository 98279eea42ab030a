"""Two processes with everything that saves memory, and with media of different kinds, learn what one learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmtune.methods import METHODS
from mmtune.testing.encoders import save_tiny_whisper, tone
from mmtune.train.recipe import Recipe
from mmtune.train.run import train
from tests.train.conftest import write_rows
from tests.train.processes import train_together
from tests.train.test_processes import SETTINGS, compare, rows

Make = Callable[..., Recipe]
ROUNDING = 2**-8  # of bf16, relative: products are rounded differently when a batch is cut; float32 is held to 1e-5


def saving(recipe: Make, folder: Path, method: str, **changes: Any) -> Recipe:
    """A run that accumulates and recomputes, on rows with and without pictures."""
    mixed = [{"path": str(folder / "data.json")}]
    shared: dict[str, Any] = {
        "data__train": mixed, "train__max_steps": 10, "train__batch_size": 4, "train__accumulation": 2,
        "train__gradient_checkpointing": True, "tune__kind": "lora", "tune__dropout": 0.0,
    }  # fmt: skip
    return recipe(method, **{**shared, **SETTINGS.get(method, {}), **changes})


@pytest.mark.slow
def test_checkpointing_with_shares_in_cpu_memory(recipe: Make, tmp_path: Path) -> None:
    write_rows(tmp_path, count=11, text_only=6)
    shared: dict[str, Any] = {"run__strategy": "fsdp", "run__offload": True}
    compare({method: saving(recipe, tmp_path, method, **shared) for method in METHODS.names()}, tmp_path)


@pytest.mark.slow
def test_bf16_with_checkpointing(recipe: Make, tmp_path: Path) -> None:
    write_rows(tmp_path, count=11, text_only=6)
    recipes = {
        f"{method}-{strategy}": saving(recipe, tmp_path, method, train__precision="bf16", run__strategy=strategy)
        for method in METHODS.names()
        for strategy in ("ddp", "fsdp")
    }
    together = train_together({tmp_path / f"{name}-two": one for name, one in recipes.items()})
    assert {found.get("status") for found in together.values()} == {"completed"}
    for name, wanted in recipes.items():
        if wanted.run.strategy == "ddp":
            train(wanted, output=tmp_path / f"{wanted.method}-one")
        for ours, theirs in zip(rows(tmp_path / f"{wanted.method}-one"), rows(tmp_path / f"{name}-two"), strict=True):
            assert ours["rows"] == theirs["rows"]
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=ROUNDING), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["llava", "multi_token"])
def test_processes_that_see_different_kinds_of_media(method: str, recipe: Make, tmp_path: Path) -> None:
    """Rows show a picture, play a sound, or do neither; a process often has one kind alone."""
    path = write_rows(tmp_path, count=12, text_only=4)
    found = json.loads(path.read_text())
    for index, row in enumerate(found[:8]):
        if index % 2:
            (tmp_path / f"{index}.wav").write_bytes(tone(200.0 + 100 * index))
            row["audio"] = row.pop("image").replace(".png", ".wav")
            row["conversations"][0]["value"] = row["conversations"][0]["value"].replace("<image>", "<audio>")
    path.write_text(json.dumps(found))
    shared: dict[str, Any] = {
        "data__train": [{"path": str(path)}], "train__max_steps": 10, "train__batch_size": 2,
        "model__encoders": {"audio": {"source": save_tiny_whisper(tmp_path / "ear")}},
        "data__max_length": 512, "tune__kind": "lora", "tune__dropout": 0.0,
    }  # fmt: skip
    compare({s: recipe(method, **shared, run__strategy=s) for s in ("ddp", "fsdp")}, tmp_path)
