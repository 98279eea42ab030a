"""Number formats and the device of a run."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, set_seed

from mmtune.core.errors import MissingExtraError, NotPossibleError, unknown_name
from mmtune.train.layers import flat
from mmtune.train.recipe import Recipe
from mmtune.train.schema import TrainRecipe

_TRACKER_EXTRAS = ("tensorboard", "wandb", "trackio", "mlflow")
_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def choose_precision(precision: str, device: torch.device) -> str:
    """``auto`` is bf16 where an accelerator has it, fp16 on older ones, else fp32.

    Raises:
        NotPossibleError: fp16 without a CUDA device.
    """
    if precision == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "fp16" and device.type != "cuda":
        raise NotPossibleError(
            f"fp16 training needs a CUDA device, this run is on {device.type}.",
            where="train.precision",
            fix="--set train.precision=bf16, or fp32",
        )
    return precision


def base_dtype(precision: str, roles: list[str]) -> str:
    """The dtype that base and encoders are loaded in: what is trained stays float32, autocast does the rest."""
    trains_base = any(role.partition(".")[0] in ("language", "encoder") for role in roles)
    if precision == "fp32" or trains_base:
        return "float32"
    return "bfloat16" if precision == "bf16" else "float16"


def make_accelerator(recipe: Recipe, precision: str, device: torch.device) -> Accelerator:
    """A fresh accelerator; an earlier one of this process with other settings is forgotten.

    Raises:
        UsageError: No such tracker.
        NotPossibleError: A tracker that is not installed.
    """
    _check_trackers(recipe)
    AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=_MIXED[precision],
        log_with=list(recipe.run.trackers) or None,
        project_dir=".",  # asked for at once by trackers that write files; see start_trackers
        device_placement=False,
    )


def start_trackers(accelerator: Accelerator, recipe: Recipe, folder: Path) -> None:
    """Let trackers begin; those that write files do it inside the run's folder."""
    accelerator.project_configuration.project_dir = accelerator.project_configuration.logging_dir = str(folder)
    settings = flat(recipe.model_dump(mode="json"))
    plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in settings.items()}
    accelerator.init_trackers("mmtune", config=plain)


def seed_everything(train: TrainRecipe, *, rank: int = 0, step: int = 0) -> None:
    """Seed Python, numpy and torch, and ask for deterministic kernels when the recipe does.

    Args:
        rank: Processes draw different numbers, so that dropout is not the same for all of their rows.
        step: Where a run goes on that could not take up its random states.
    """
    set_seed((train.seed + rank + step * 1_000_003) % 2**32)
    if train.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _check_trackers(recipe: Recipe) -> None:
    known = [tracker.value for tracker in LoggerType if tracker is not LoggerType.ALL]
    installed = {tracker.value for tracker in get_available_trackers()}
    for name in recipe.run.trackers:
        if name not in known:
            raise unknown_name("tracker", name, known, where=recipe.where("run.trackers"))
        if name not in installed:
            raise _not_installed(name, recipe.where("run.trackers"))


def _not_installed(name: str, where: str) -> NotPossibleError:
    if name in _TRACKER_EXTRAS:
        error = MissingExtraError(f"run.trackers: {name}", name)
        error.where = where
        return error
    return NotPossibleError(f"The tracker '{name}' is not installed.", where=where, fix=f"pip install {name}")
