"""What one method goes through in a quickstart: captions of the pictures first, then questions about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.train.display import Display
from mmtune.train.recipe import resolve
from mmtune.train.run import train
from mmtune.train.run_directory import read_status

STAGES: Mapping[str, tuple[str, str]] = {"pretrain": ("pretrain", "captions"), "finetune": ("train", "questions")}
"""Verb to the part of the data that is learnt from, and what that is called."""


def prepared(folder: Path, part: str) -> Path:
    """The prepared folder of a part of a quickstart's data."""
    return folder / "data" / part


@dataclass(frozen=True)
class Course:
    """The stages of one method.

    Attributes:
        folder: Of the quickstart.
        label: How the method is spelt on the screen.
        command: What ``command.txt`` says.
        steps: Verb to the steps of its stage; None for those of the method's own recipes.
    """

    folder: Path
    method: str
    label: str
    seed: int
    base: str
    vision: str
    command: tuple[str, ...]
    sets: Sequence[str] = ()
    steps: Mapping[str, int] | None = None

    def run(self, display: Display) -> dict[str, dict[str, Any]]:
        """Train both stages, go on with them, or read the results of finished ones; the JSON of each verb."""
        first = self._stage("pretrain", None, display)
        return {"pretrain": first, "finetune": self._stage("finetune", str(first["model"]), display)}

    def is_finished(self) -> bool:
        """Whether there is nothing left to train."""
        return all(read_status(self._output(verb)).get("status") == "completed" for verb in STAGES)

    def _output(self, verb: str) -> Path:
        return self.folder / "runs" / f"{self.method}-{verb}"

    def _stage(self, verb: str, model: str | None, display: Display) -> dict[str, Any]:
        status = read_status(self._output(verb))
        if status.get("status") == "completed":
            return status
        part, content = STAGES[verb]
        overrides: dict[str, Any] = {
            "method": self.method,
            "model.checkpoint": model,
            "data.train": [str(prepared(self.folder, part))],
            "train.seed": self.seed,
        }
        if self.steps is not None:
            overrides["train.max_steps"] = self.steps[verb]
        if model is None:
            overrides |= {"model.base": self.base, "model.vision": self.vision}
        else:
            overrides["data.validation"] = [str(prepared(self.folder, "val"))]
        recipe = resolve(verb, overrides=overrides, sets=self.sets)
        named, output = _Named(display, f"{self.label}: {content}"), self._output(verb)
        return train(recipe, verb=verb, model=model, output=output, display=named, command=self.command)


class _Named:
    """Passes the events of a training on, with the name of the stage before each phase."""

    def __init__(self, inner: Display, name: str) -> None:
        self._inner, self._name = inner, name
        self.start, self.step, self.end = inner.start, inner.step, inner.end
        self.note, self.table = inner.note, inner.table

    def phase(self, name: str) -> None:
        """A part of the stage begins."""
        self._inner.phase(self._name if name == "train" else f"{self._name} ({name})")
