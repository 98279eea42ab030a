"""The folder of a quickstart: its settings, its data, and the time that each part took."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtune.core.errors import UsageError
from mmtune.data.prepare import prepare
from mmtune.nano.course import prepared
from mmtune.nano.world.dataset import write_dataset
from mmtune.train.display import Display
from mmtune.train.files import write_json

STATE = "quickstart.json"


class Workplace:
    """The folder of one quickstart, with its settings and the time that each part took."""

    def __init__(self, folder: Path, settings: dict[str, Any], display: Display) -> None:
        self.folder, self.settings, self.display = folder, settings, display
        path = folder / STATE
        if path.is_file():
            self.state = json.loads(path.read_text(encoding="utf-8"))
            old = self.state["settings"]
            changed = [
                f"{key}: {old[key]!r} -> {value!r}" for key, value in settings.items() if old.get(key, value) != value
            ]
            if changed:
                raise UsageError(
                    f"The folder holds another quickstart. {'; '.join(changed)}",
                    where=str(folder),
                    fix="give another --output, or remove the folder",
                )
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                "The folder is not empty and no quickstart.", where=str(folder), fix="give another --output"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.state = {"settings": settings, "seconds": {}}
        self._write()

    def make_data(self) -> Path:
        """Draw the world and prepare what is trained on; what is there already is kept."""
        world = self.folder / "world"
        with self.phase("data"):
            if not (world / "dataset.json").is_file():
                write_dataset(world, seed=self.settings["seed"], **self.settings["sizes"])
            for name in ("pretrain", "train", "val"):
                target = prepared(self.folder, name)
                if not (target / "manifest.json").is_file():
                    prepare([str(world / f"{name}.json")], target)
        return world

    def answers(self, method: str) -> tuple[Path, Path]:
        """Where a method's evaluations are, as `mmtune compare` finds them, and its other answers."""
        return self.folder / "runs" / "eval" / method, self.folder / "answers" / method

    @contextmanager
    def phase(self, name: str, *, part: str | None = None) -> Iterator[None]:
        """Tell that a phase begins, and keep how long it took over all calls."""
        self.display.phase(name)
        began = time.perf_counter()
        try:
            yield
        finally:
            taken = self.state["seconds"]
            taken[part or name] = taken.get(part or name, 0.0) + time.perf_counter() - began
            self._write()

    def seconds(self, part: str) -> float:
        """How long a phase took."""
        return float(self.state["seconds"].get(part, 0.0))

    def _write(self) -> None:
        write_json(self.folder / STATE, self.state)
