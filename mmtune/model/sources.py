"""Where bases and encoders come from: the embedded nano, a folder, or the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtune.core.errors import CheckpointError, MMTuneError, ResourceError, UsageError
from mmtune.modalities import MODALITIES
from mmtune.modalities.base import NO_SOURCE, Modality
from mmtune.model.configuration import MMTuneConfig

NANO = "nano"
_ASSETS = Path(__file__).resolve().parents[1] / "nano" / "assets"


def resolve_source(source: str, part: str, folder: str | Path | None = None) -> str:
    """Turn a source into something transformers can load.

    Args:
        source: ``nano``, a folder, or a hub id.
        part: ``llm``, ``vision`` or ``adapter``: which part of nano is meant.
        folder: The checkpoint that named the source; relative paths are tried from there first.

    Raises:
        CheckpointError: A path that does not exist.
    """
    if source == NANO:
        return str(_ASSETS / part)
    if folder is not None:
        inside = Path(folder) / source
        if (inside / "config.json").is_file() or (source.startswith(".") and inside.is_dir()):
            return os.path.normpath(inside)
    expanded = os.path.expanduser(source)
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_like_path and not Path(expanded).is_dir():
        raise CheckpointError(
            f"No such folder: {source}", where=str(folder or source), fix="give a folder, a hub id, or nano"
        )
    return expanded


def read_modality(name: str, entry: Mapping[str, Any], folder: str | Path | None = None) -> Modality:
    """The modality that an entry of a recipe or checkpoint describes; weights are not loaded.

    Args:
        name: Its name in the model, also its kind unless the entry has a ``kind``.
        entry: ``source``, ``revision`` and ``settings``.
        folder: The checkpoint that holds the entry.

    Raises:
        UsageError: No such modality, or no source for one that has an encoder.
        CheckpointError: An encoder's configuration that is not there.
        ResourceError: No such folder, and the hub is out of reach or has no such model.
    """
    kind: type[Modality] = MODALITIES.load(entry.get("kind") or name)
    source = entry.get("source")
    if kind.has_encoder and source is None:
        raise UsageError(
            f"The encoder '{name}' has no source.",
            where=f"model.encoders.{name}",
            fix=f"--set model.encoders.{name}.source=FOLDER",
        )
    if kind.has_encoder:
        source = resolve_source(str(source), "vision", folder)
    with reading(source, f"encoder '{name}'"):
        return kind.from_source(source or NO_SOURCE, revision=entry.get("revision"), settings=entry.get("settings"))


@contextmanager
def reading(source: str | None, what: str) -> Iterator[None]:
    """Tell a folder whose files are wrong from a name that leads nowhere.

    Raises:
        ResourceError: No folder, and nothing was to be had from the hub.
    """
    try:
        yield
    except CheckpointError as error:
        if source is None or Path(source).is_dir():
            raise
        raise loading_error(source, what, error) from error


def relative_source(source: str, folder: str | Path) -> str:
    """How a checkpoint in ``folder`` names a source: hub ids and nano as they are, folders by a relative path."""
    if source == NANO or not Path(source).is_dir():
        return source
    return os.path.relpath(Path(source).resolve(), Path(folder).resolve())


def loading_error(source: str, what: str, error: BaseException) -> MMTuneError:
    """The error for a source that transformers could not load: a hub out of reach is not a broken folder."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    if _is_own_model(Path(source)):
        message = f"A {what} is asked for, and '{source}' holds a whole model of mmtune."
        return CheckpointError(message, where=source, fix=f"go on from it with --model {source}")
    if Path(source).is_dir():
        return CheckpointError(
            f"The {what} in '{source}' cannot be loaded: {line}", where=source, fix="check its files"
        )
    return ResourceError(
        f"The {what} '{source}' is no folder here and cannot be fetched from the hub: {line}",
        where=source,
        fix="check the spelling and the network, or give a local folder",
    )


def _is_own_model(folder: Path) -> bool:
    """Whether mmtune wrote it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MMTuneConfig.model_type
