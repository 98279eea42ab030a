"""A command line that runs in this process, and a tiny trained-looking model for it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtune.cli.app import main

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, checked against what everybody may rely on."""
        error: dict[str, Any] = self.json["error"]
        assert {"code", "exit", "message", "where", "fix"} <= set(error)
        assert error["exit"] == self.code
        return error


Run = Callable[..., Outcome]


@pytest.fixture
def mmtune(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command in an empty working directory: ``mmtune("generate", "--image", path)``."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # crash reports

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = main([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA model with everything it needs in its own folder."""
    from mmtune.model.build import build_model
    from tests.tiny import save_tiny_lm, save_tiny_vision

    folder = tmp_path_factory.mktemp("cli")
    base, vision = save_tiny_lm(folder / "lm"), save_tiny_vision(folder / "vision")
    model, processor = build_model(base=base, encoders={"image": vision}, method="llava")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small picture."""
    path = tmp_path / "red.png"
    Image.new("RGB", (20, 16), "red").save(path)
    return path


@pytest.fixture
def data(tmp_path: Path, picture: Path) -> Path:
    """A LLaVA json with three good rows."""
    rows = [
        {
            "id": f"row{index}",
            "image": picture.name,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat color?"},
                {"from": "gpt", "value": f"red {index}"},
            ],
        }
        for index in range(3)
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    return path


def fake_verb(monkeypatch: pytest.MonkeyPatch, work: Callable[[Any], Any]) -> None:
    """Put a verb ``fake`` into the table, which does ``work(console)``."""
    import sys
    from types import ModuleType

    import typer

    from mmtune.cli import app

    def run(context: typer.Context) -> Any:
        """Do the fake work."""
        return work(context.obj)

    module = ModuleType("fake_verb")
    module.run = run  # type: ignore[attr-defined]
    run.__annotations__["context"] = typer.Context
    monkeypatch.setitem(sys.modules, "fake_verb", module)
    monkeypatch.setitem(app.VERBS, "fake", ("fake_verb", "A fake."))


@pytest.fixture(autouse=True)
def _quick(quick_runs: None) -> None:
    """Runs of these tests are quick ones."""
