"""Which model is taken when none is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mmtune.cli.console import Console
from mmtune.cli.models import choose_model
from mmtune.core.errors import CheckpointError


def make_run(runs: Path, name: str, status: str, *, age: float, model: bool = True) -> None:
    folder = runs / name
    (folder / "model").mkdir(parents=True)
    if model:
        (folder / "model" / "config.json").write_text("{}")
    (folder / "status.json").write_text(json.dumps({"status": status}))
    os.utime(folder / "status.json", (age, age))


def test_the_newest_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "a_new", "completed", age=200)
    make_run(tmp_path, "z_old", "completed", age=100)
    make_run(tmp_path, "unfinished", "interrupted", age=300)
    make_run(tmp_path, "no_model", "completed", age=400, model=False)
    (tmp_path / "notes.txt").write_text("x")
    assert choose_model(None, Console(), tmp_path) == str(tmp_path / "a_new" / "model")
    assert capsys.readouterr().err.count("\n") == 1


def test_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_model(None, Console(), tmp_path / "none") == "nano"
    assert capsys.readouterr().err == "No --model: using the bundled nano model.\n"
    assert choose_model(None, Console(quiet=True), tmp_path / "none") == "nano"
    assert capsys.readouterr().err == ""


def test_a_run_stands_for_its_model(tmp_path: Path) -> None:
    make_run(tmp_path, "done", "completed", age=1)
    make_run(tmp_path, "begun", "interrupted", age=1, model=False)
    assert choose_model(str(tmp_path / "done"), Console()) == str(tmp_path / "done" / "model")
    with pytest.raises(CheckpointError, match="interrupted"):
        choose_model(str(tmp_path / "begun"), Console())
    with pytest.raises(CheckpointError) as caught:
        choose_model(str(tmp_path / "dune"), Console())
    assert caught.value.fix == f"--model {tmp_path / 'done'}"


def test_hub_ids_are_left_alone() -> None:
    assert choose_model("org/name", Console()) == "org/name"
