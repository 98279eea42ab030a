"""Finds what a checkpoint refers to: its base and its encoder, by path or hub id, with the revision pinned."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mmtune.core.errors import CheckpointError, MMTuneError, ResourceError
from mmtune.model.sources import NANO, resolve_source

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DESCRIPTIONS = ("config.json", "params.json")  # of transformers, and of Meta
SINGLE_FILES = (".pt", ".pth")  # OpenAI's CLIP, LaVIN's adapters
_FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.jinja"]


@dataclass(frozen=True, slots=True)
class Place:
    """A folder on this machine, and the hub id and commit it is a copy of, if any."""

    folder: Path
    hub_id: str | None = None
    revision: str | None = None


def locate(name: str, *, beside: Path | None = None, what: str, option: str) -> Place:
    """Resolve a path or hub id as found in a checkpoint or typed by a user.

    A relative path is tried from the working directory, then beside the checkpoint, in its folder and each parent.

    Raises:
        CheckpointError: No such folder; the message lists where it was looked for.
        ResourceError: A hub id, and the hub cannot be reached.
    """
    tried = candidates(name, beside)
    for folder in tried:
        if any((folder / name).is_file() for name in _DESCRIPTIONS):
            return Place(folder)
    if is_hub_id(name):
        return from_hub(name, fix=f"check the network, or give a local folder with {option}")
    looked = ", ".join(str(folder) for folder in tried[:4])
    raise CheckpointError(
        f"The {what} '{name}' was not found. Looked for a config.json in: {looked}.",
        where=str(beside) if beside is not None else option,
        fix=f"give its folder or hub id with {option}",
    )


def candidates(name: str, beside: Path | None) -> list[Path]:
    """The folders that a name may mean, in the order they are tried."""
    path = Path(name).expanduser()
    if path.is_absolute() or beside is None:
        return [path]
    start = beside.resolve()
    return [path, *(folder / path for folder in (start, *start.parents))]


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``organisation/name``."""
    return _HUB_ID.fullmatch(name) is not None


def source_place(name: str) -> Place:
    """The checkpoint to convert: a folder, a ``.pt`` or ``.pth`` file, a hub id that is downloaded, or ``nano``.

    A run stands for its model.

    Raises:
        CheckpointError: Nothing there, a file of another kind, or a run that has no model yet.
        ResourceError: A hub id, and the hub cannot be reached.
    """
    if name == NANO:
        return Place(Path(resolve_source(NANO, "adapter")))
    path = Path(name).expanduser()
    if (path / "status.json").is_file() and not (path / "config.json").is_file():
        path = path / "model"
        if not (path / "config.json").is_file():
            fix = "run its command again, or convert another one"
            raise CheckpointError("The run has no model yet.", where=name, fix=fix)
    if path.is_dir() or (path.is_file() and path.suffix in SINGLE_FILES):
        return Place(path)
    if path.exists():
        raise CheckpointError(
            "The source is a file; a checkpoint is a folder with its config.json.", where=name, fix="give its folder"
        )
    if is_hub_id(name):
        return from_hub(name)
    raise CheckpointError("The source does not exist.", where=name, fix="check the path")


def from_hub(name: str, *, fix: str = "check the spelling and the network, or give a local folder") -> Place:
    """Download (or find in the cache) a model of the hub; no code file is fetched.

    Raises:
        ResourceError: The hub cannot be reached and the cache does not hold it.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:
        raise _unreachable(name, error, fix) from error
    return Place(folder, hub_id=name, revision=folder.name)


def _unreachable(name: str, error: Exception, fix: str) -> MMTuneError:
    detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ResourceError(
        f"'{name}' is no folder here and cannot be fetched from the hub: {detail}",
        where=name,
        fix=fix,
    )
