"""A run's folder: what was asked, where it ran, how it went and what came out."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mmtune.core.errors import ResourceError, UsageError
from mmtune.train.files import replace_folder, write_json, write_text, writing
from mmtune.train.recipe import Recipe, difference, dump, recipe_hash, resolve

_PACKAGES = ("mmtune", "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "pillow", "numpy")


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.model = folder / "model"
        self.metrics = folder / "metrics.jsonl"
        self._log = folder / "log.txt"

    def status(self) -> dict[str, Any]:
        """What ``status.json`` says; empty when there is none or it is damaged."""
        return read_status(self.folder)

    def set_status(self, status: str, **values: Any) -> None:
        """Replace ``status.json``."""
        write_json(self.folder / "status.json", {"status": status, "pid": os.getpid(), "time": _now(), **values})

    def update_status(self, **values: Any) -> None:
        """Change some values of ``status.json``."""
        write_json(self.folder / "status.json", {**self.status(), "time": _now(), **values})

    def write_start(self, recipe: Recipe, command: Sequence[str], extra: Mapping[str, Any]) -> None:
        """Write the resolved recipe, the command and the environment."""
        for name in ("plots", "checkpoints"):
            with writing(self.folder):
                (self.folder / name).mkdir(exist_ok=True)
        write_text(self.folder / "recipe.yaml", dump(recipe))
        write_text(self.folder / "command.txt", _written(command))
        write_json(self.folder / "env.json", {**environment(), **extra})

    def log(self, text: str) -> None:
        """Append a line to ``log.txt``."""
        with writing(self._log), self._log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{_now()} {text}\n")

    def keep_metrics(self, last_step: int) -> None:
        """Drop rows of steps after the one that a run goes on from."""
        rows = [row for row in self.rows() if row["step"] <= last_step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of ``metrics.jsonl``; a last line that a crash cut off is left out."""
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return

    def save_model(self, final: Path, write: Callable[[Path], None]) -> None:
        """Write a model's folder whole or not at all."""
        partial = final.with_name(f".{final.name}.partial")
        with writing(final):
            shutil.rmtree(partial, ignore_errors=True)
            final.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            replace_folder(partial, final)


def choose_folder(recipe: Recipe, verb: str, output: Path | None) -> Path:
    """Where a run lives: the given folder, an unfinished run of the same recipe, or ``runs/<date>_<method>_<hash>``."""
    given = output or (Path(recipe.run.output) if recipe.run.output else None)
    if given is not None:
        return given
    name = f"{recipe.method}_{recipe_hash(recipe, verb)}"
    unfinished = [
        folder for folder in Path("runs").glob(f"*_{name}") if read_status(folder).get("status") != "completed"
    ]
    if unfinished:
        return max(unfinished, key=lambda folder: folder.name)
    return Path("runs") / f"{datetime.date.today():%Y%m%d}_{name}"


def open_run(folder: Path, recipe: Recipe, verb: str, *, overwrite: bool) -> RunDirectory:
    """Make a run's folder, or take up an unfinished one.

    Raises:
        UsageError: The run is finished, its recipe is another, or the folder holds something else; and ``overwrite`` is
            not given.
        ResourceError: The folder cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            "A file stands where the run's folder should be.", where=str(folder), fix="give another --output"
        )
    is_run = (folder / "recipe.yaml").is_file() or (folder / "status.json").is_file()
    is_empty = not folder.exists() or all(map(_is_leftover, folder.iterdir()))
    if not is_run and not is_empty:
        raise UsageError("The folder is not empty and no run.", where=str(folder), fix="give another --output")
    if is_run and not overwrite:
        _refuse_other(folder, recipe, verb)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return RunDirectory(folder)


def begins_anew(folder: Path, recipe: Recipe, verb: str, command: Sequence[str]) -> bool:
    """Whether ``--overwrite`` empties a folder: not when the very same command stopped there and has to go on."""
    status = read_status(folder)
    stopped = status.get("status") in ("running", "interrupted") or _exit_code(status) == ResourceError.exit_code
    try:
        begun = (folder / "command.txt").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return True
    return not stopped or begun != _written(command) or bool(_changes(folder, recipe, verb))


def clear(folder: Path) -> None:
    """Empty a run's folder, its lock excepted."""
    with writing(folder):
        for entry in folder.iterdir():
            if entry.name == ".lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def read_status(folder: Path) -> dict[str, Any]:
    """What a run's ``status.json`` says; empty when there is none or it is damaged."""
    try:
        found = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def newest_finished_run(root: str | Path = "runs") -> Path | None:
    """The finished run whose model was saved last, or None."""
    runs = [folder for folder in Path(root).glob("*") if read_status(folder).get("status") == "completed"]
    runs = [folder for folder in runs if (folder / "model" / "config.json").is_file()]
    return max(runs, key=lambda folder: (folder / "status.json").stat().st_mtime_ns, default=None)


def environment() -> dict[str, Any]:
    """Versions and machine, as ``env.json`` keeps them."""
    import torch

    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": cuda,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def default_command() -> list[str]:
    """The command line of this process."""
    return list(sys.argv)


def _is_leftover(entry: Path) -> bool:
    """Whether this may lie in a folder where a run was killed before it had written anything."""
    return entry.name == ".lock" or (entry.name.startswith(".") and entry.suffix == ".partial")


def _written(command: Sequence[str]) -> str:
    """A command as its file has it: names that are no text are spelt out."""
    return shlex.join(command).encode(errors="backslashreplace").decode() + "\n"


def _exit_code(status: Mapping[str, Any]) -> int | None:
    error = status.get("error")
    return error.get("exit") if isinstance(error, Mapping) else None


def _changes(folder: Path, recipe: Recipe, verb: str) -> list[str]:
    """In what a run in a folder differs from the one that is asked for."""
    file, status = folder / "recipe.yaml", read_status(folder)
    if status.get("status") != "completed" and not any(folder.glob("checkpoints/*")):
        failed_at_once = status.get("status") == "failed" and status.get("step") == 0
        if failed_at_once or not file.exists():  # or killed before it was written down: there is nothing to lose
            return []
    try:
        changed = difference(resolve(verb, file=file), recipe)
    except UsageError as error:
        changed = [f"its recipe.yaml cannot be read: {error.message}"]
    if status.get("verb") not in (None, verb):
        changed.insert(0, f"verb: {status['verb']} -> {verb}")
    return changed


def _refuse_other(folder: Path, recipe: Recipe, verb: str) -> None:
    changed = _changes(folder, recipe, verb)
    if changed:
        raise UsageError(
            "The folder holds a run of another recipe. " + "; ".join(changed),
            where=str(folder),
            fix="give another --output, or --overwrite to start anew",
        )
    if read_status(folder).get("status") == "completed":
        fix = "give another --output, or --overwrite to start anew"
        raise UsageError("This run is finished.", where=str(folder), fix=fix)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
