"""Runs whose batches are made by length: nothing is lost, little is padding, and they go on bit by bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtune.core.errors import RecipeError
from mmtune.train.loop import Loop
from mmtune.train.recipe import Recipe
from mmtune.train.run import train

Make = Callable[..., Recipe]
WORDS = (1, 2, 3, 4, 5, 8, 12, 20, 30, 40)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Thirty rows from one to forty words, a third of them without a picture."""
    rows: list[dict[str, Any]] = []
    for index in range(30):
        row: dict[str, Any] = {"id": f"row-{index}"}
        marker = ""
        if index % 3:
            Image.new("RGB", (20, 16), (8 * index, 0, 99)).save(tmp_path / f"{index}.png")
            row["image"], marker = f"{index}.png", "<image>\n"
        asked = {"from": "human", "value": f"{marker}Go on."}
        row["conversations"] = [asked, {"from": "gpt", "value": "la " * (WORDS[index % 10] - 1) + "la"}]
        rows.append(row)
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(rows))
    return path


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def recipe_for(recipe: Make, mixed: Path, **changes: Any) -> Recipe:
    values = {"train__max_steps": None, "train__epochs": 1, "train__batch_size": 5, "data__template": "vlora"}
    values["data__train"] = [{"path": str(mixed)}]
    return recipe(**{**values, "data__cache": str(mixed.parent / "cache"), **changes})


@pytest.mark.parametrize("changes", [{"train__tokens_per_batch": 500}, {"train__grouping": "length"}])
def test_every_row_is_seen_with_little_padding(
    changes: dict[str, Any], recipe: Make, mixed: Path, tmp_path: Path
) -> None:
    train(recipe_for(recipe, mixed), output=tmp_path / "random")
    result = train(recipe_for(recipe, mixed, **changes), output=tmp_path / "grouped")
    assert result["samples"] == 30
    found = metrics(tmp_path / "grouped")
    assert found[-1]["epoch"] == 1.0
    assert sum(row["padding"] for row in found) < 0.5 * sum(row["padding"] for row in metrics(tmp_path / "random"))
    assert all(0 <= row["data_wait"] <= 1 for row in found)
    if "train__tokens_per_batch" in changes:
        assert max(row["tokens"] / (1 - row["padding"]) for row in found) <= 501


def test_fractions_of_epochs_of_changing_size(recipe: Make, mixed: Path, tmp_path: Path) -> None:
    result = train(recipe_for(recipe, mixed, train__tokens_per_batch=400, train__epochs=2.5), output=tmp_path / "run")
    assert 75 <= result["samples"] < 90
    assert metrics(tmp_path / "run")[-1]["epoch"] >= 2.5


@pytest.mark.parametrize("grouping", ["length", "modality", None])
def test_a_broken_run_goes_on_bit_by_bit(
    grouping: str | None, recipe: Make, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"train__grouping": grouping, "train__accumulation": 2, "train__epochs": 3}
    if grouping is None:
        changes["train__tokens_per_batch"] = 400
    named = recipe_for(recipe, mixed, save__every_steps=2, **changes)
    train(named, output=tmp_path / "whole")
    step, calls = Loop._one_step, []

    def crash(self: Loop, steps: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("gone")
        return step(self, steps)

    monkeypatch.setattr(Loop, "_one_step", crash)
    with pytest.raises(RuntimeError, match="gone"):
        train(named, output=tmp_path / "broken")
    monkeypatch.setattr(Loop, "_one_step", step)
    assert train(named, output=tmp_path / "broken")["resumed_from"] == 4
    one, two = (
        hashlib.sha256((tmp_path / name / "model/adapter.safetensors").read_bytes()).hexdigest()
        for name in ("whole", "broken")
    )
    assert one == two


def test_lengths_are_measured_once(recipe: Make, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = recipe_for(recipe, mixed, train__tokens_per_batch=500)
    first = train(named, output=tmp_path / "one")
    kept = list((mixed.parent / "cache/lengths").glob("*.npy"))
    assert len(kept) == 1
    monkeypatch.setattr("mmtune.train.lengths._measure", lambda *_: 1 / 0)
    assert train(named, output=tmp_path / "two")["loss"] == first["loss"]
    kept[0].write_bytes(b"half")
    with pytest.raises(ZeroDivisionError):  # a damaged file is measured again
        train(named, output=tmp_path / "three")


def test_a_row_that_fits_in_no_batch_is_named(recipe: Make, mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Row 'row-\d9' has \d+ positions, train.tokens_per_batch is 60") as caught:
        train(recipe_for(recipe, mixed, train__tokens_per_batch=60), output=tmp_path / "run")
    assert "train.tokens_per_batch=" in str(caught.value.fix)
