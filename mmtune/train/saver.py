"""When a run saves, and what is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmtune.model.checkpoint import save_model
from mmtune.model.modeling import MMTuneModel
from mmtune.model.processing import MMTuneProcessor
from mmtune.model.weights import written_weights
from mmtune.train.recipe import Recipe
from mmtune.train.run_directory import RunDirectory
from mmtune.train.state import collect, random_state, save_checkpoint
from mmtune.train.team import Team


class Saver:
    """Checkpoints to go on from, and the model of the lowest validation loss in ``checkpoints/best/``."""

    def __init__(
        self, recipe: Recipe, run: RunDirectory, model: MMTuneModel, processor: MMTuneProcessor, team: Team
    ) -> None:
        self.run = run
        self._team = team
        self.best: dict[str, Any] | None = None
        self.last_saved: int | None = None
        self._save = recipe.save
        self._model, self._processor = model, processor
        self._time = time.monotonic()

    def start(self) -> None:
        """Begin to count the minutes."""
        self._time = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after this step."""
        every, minutes = self._save.every_steps, self._save.every_minutes
        if every is not None and step % every == 0:
            return True
        return minutes is not None and self._team.on_main(lambda: time.monotonic() - self._time >= minutes * 60)

    def checkpoint(self, step: int, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Write a checkpoint to go on from.

        Raises:
            ResourceError: The disk is full or cannot be written to.
        """
        contents = collect(self._model, optimizer, keep=self._team.is_main)
        state = {**state, "random": self._team.gather(random_state())}

        def write() -> None:
            save_checkpoint(self.run.checkpoints, step, contents, state, keep=self._save.keep)
            self.run.update_status(step=step)

        self._team.on_main(write)
        self.last_saved = step
        self._time = time.monotonic()

    def consider(self, step: int, loss: float) -> None:
        """Keep the model if no validation loss was lower."""
        if self._save.best is False or (self.best is not None and loss >= self.best["validation_loss"]):
            return
        folder = self.run.checkpoints / "best"
        self.write_model(folder)
        self.best = {"step": step, "validation_loss": loss, "model": str(folder)}

    def write_model(self, folder: Path) -> None:
        """Write a folder that ``mmtune.load`` reads."""

        weights = written_weights(self._model, keep=self._team.is_main)

        def write(partial: Path) -> None:
            save_model(self._model, partial, weights)
            self._processor.save_pretrained(str(partial))

        self._team.on_main(lambda: self.run.save_model(folder, write))
