"""Which model a verb works with when none is named, and loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtune.cli.console import Console
from mmtune.core.errors import CheckpointError, nearest

BUNDLED = "nano"


def choose_model(given: str | None, console: Console, runs: Path = Path("runs")) -> str:
    """The model folder or id: the one given (a run stands for its model), the newest finished run, or the bundled one.

    Raises:
        CheckpointError: A run that has no model yet, or a path that does not exist.
    """
    from mmtune.train.run_directory import newest_finished_run, read_status

    if given is None:
        found = newest_finished_run(runs)
        chosen = str(found / "model") if found else BUNDLED
        why = "the newest finished run" if found else "the bundled nano model"
        console.note(f"No --model: using {why}" + (f" ({chosen})." if found else "."))
        return chosen
    folder = Path(given)
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    if (folder / "status.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"The run has no model yet; its status is '{read_status(folder).get('status')}'.",
            where=given,
            fix=f"continue it with the command in {folder / 'command.txt'}",
        )
    if not folder.exists() and _is_path(given):
        raise CheckpointError(f"There is no model '{given}'.", where="--model", fix=_nearby(folder))
    return given


def load_for(console: Console, given: str | None, *, device: str, dtype: str) -> tuple[Any, Any, str]:
    """Model, processor and the name that results carry."""
    name = choose_model(given, console)
    from mmtune.model.build import load

    quiet_libraries(console)
    model, processor = load(name, device=device, dtype=dtype)
    return model, processor, name


def quiet_libraries(console: Console) -> None:
    """Keep the loading bars and advice of libraries off the screen unless ``--verbose``."""
    if console.verbose:
        return
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


def _is_path(given: str) -> bool:
    """Whether this can only be a path: a hub id is NAME or ORG/NAME."""
    return given.startswith((".", "/", "~")) or given.count("/") > 1 or "\\" in given


def _nearby(folder: Path) -> str:
    siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
    guess = nearest(folder.name, siblings)
    return f"--model {folder.parent / guess}" if guess else "give a model folder, a run, or a hub id"
