"""Tiny bases and data that runs train on in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtune.train.recipe import Recipe, resolve
from tests.tiny import save_tiny_lm, save_tiny_vision

VLORA = {"dim": 32, "rank": 4, "depth": 1, "heads": 4, "types": "qkvom", "every": 1}
COLORS = ("red", "green", "blue", "black")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny language model."""
    return save_tiny_lm(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def vision(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny vision encoder."""
    return save_tiny_vision(tmp_path_factory.mktemp("vision"))


def write_rows(folder: Path, name: str = "data.json", count: int = 12, text_only: int = 2) -> Path:
    """A LLaVA file about one-coloured pictures; the last rows have none."""
    rows = []
    for index in range(count):
        color = COLORS[index % len(COLORS)]
        row: dict[str, Any] = {"id": f"row-{index}"}
        marker = ""
        if index < count - text_only:
            Image.new("RGB", (20, 16), color).save(folder / f"{index}.png")
            row["image"], marker = f"{index}.png", "<image>\n"
        asked = {"from": "human", "value": f"{marker}Which color?"}
        row["conversations"] = [asked, {"from": "gpt", "value": color}]
        rows.append(row)
    path = folder / name
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA file of twelve rows, two of them without a picture."""
    return write_rows(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(base: str, vision: str, data: Path) -> Callable[..., Recipe]:
    """A recipe on the tiny base; keywords are dotted keys with ``__`` for dots."""

    def make(method: str = "llava", **changes: Any) -> Recipe:
        values = {
            "method": method,
            "model.base": base,
            "model.vision": vision,
            "data.train": [{"path": str(data)}],
            "data.template": "vicuna_v1",
            "train.batch_size": 3,
            "train.max_steps": 8,
            "train.epochs": 10,
            "train.learning_rate": 1e-3,
            "save.every_steps": 3,
            "run.device": "cpu",
        }
        if method == "vlora":
            values["model.settings"] = VLORA
        values.update({key.replace("__", "."): value for key, value in changes.items()})
        return resolve("finetune", overrides=values)

    return make


@pytest.fixture(autouse=True)
def _quick(quick_runs: None) -> None:
    """Runs of these tests are quick ones."""
