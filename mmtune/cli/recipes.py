"""Options of the training verbs, which `plan` takes too, and the recipe that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmtune.cli.options import POSITIVE, one_of

if TYPE_CHECKING:
    from mmtune.train.schema import Recipe

TUNES = ("method", "lora", "qlora", "full")

RECIPE = Annotated[Path | None, typer.Argument(metavar="RECIPE.yaml", help="Settings from a file.")]
METHOD = Annotated[
    str | None,
    typer.Option(metavar="M", help="How perception reaches the LM: llava, multi-token, vlora, lavin."),
]
PRESET = Annotated[str | None, typer.Option(metavar="P", help="Published settings, see `mmtune presets`.")]
BASE = Annotated[str | None, typer.Option(metavar="LLM", help="Folder or hub id of the language model.")]
VISION = Annotated[str | None, typer.Option(metavar="ENCODER", help="Folder or hub id of the image encoder.")]
MODEL = Annotated[str | None, typer.Option(metavar="CHECKPOINT", help="Trained model to go on from.")]
OUTPUT = Annotated[str | None, typer.Option(metavar="DIR", help="Run directory. [default: under runs/]")]
TUNE = Annotated[str | None, typer.Option(metavar="|".join(TUNES), help="What is trained.")]
EPOCHS = Annotated[float | None, typer.Option(metavar="N", help="Passes over the data.")]
MAX_STEPS = Annotated[int | None, typer.Option(**POSITIVE, help="Stop after this many steps.")]
BATCH_SIZE = Annotated[int | None, typer.Option(**POSITIVE, help="Samples a step.")]
LEARNING_RATE = Annotated[float | None, typer.Option(metavar="F", help="Peak learning rate.")]
NUM_PROCESSES = Annotated[int | None, typer.Option(**POSITIVE, help="Processes, one a device.")]
RUN_DEVICE = Annotated[str | None, typer.Option(metavar="D", help="auto, cpu, cuda, cuda:1, mps.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Show recipe and components, then stop.")]

_KEYS = {
    "method": "method", "base": "model.base", "vision": "model.vision", "model": "model.checkpoint",
    "data": "data.train", "media_root": "data.media_root", "epochs": "train.epochs", "max_steps": "train.max_steps",
    "batch_size": "train.batch_size", "learning_rate": "train.learning_rate", "seed": "train.seed",
    "output": "run.output", "num_processes": "run.num_processes", "device": "run.device",
}  # fmt: skip


def recipe_of(verb: str, given: Mapping[str, Any]) -> Recipe:
    """The recipe of a command line.

    Args:
        given: Options by the names of their parameters; those that set nothing in a recipe are passed over.
    """
    from mmtune.train.recipe import resolve

    tune, sets = given.get("tune"), given.get("set_")
    flags = {key: given.get(name) for name, key in _KEYS.items()}
    flags["tune.kind"] = tune and one_of("--tune", tune, TUNES)
    chosen: Sequence[str] = sets or ()
    return resolve(verb, preset=given.get("preset"), file=given.get("recipe"), overrides=flags, sets=chosen)
