"""The processor's own file, ``mmtune_processor.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from mmtune.core.errors import CheckpointError
from mmtune.methods.base import Lead
from mmtune.modalities import MODALITIES
from mmtune.modalities.base import Modality
from mmtune.model.sources import NANO, relative_source, resolve_source

PROCESSOR_FILE = "mmtune_processor.json"
Slots = int | Literal["positions"]  # ids an item gets: a fixed number, or one for each encoder position


class HasSettings(Protocol):
    """What a processor keeps in its file."""

    tokenizer: PreTrainedTokenizerBase
    modalities: dict[str, Modality]
    template: str
    placeholder_ids: dict[str, int]
    slots: dict[str, Slots]
    lead: Lead | None


def write_settings(processor: HasSettings, folder: Path) -> None:
    """Write the processor's file into a folder."""
    modalities = {
        name: {
            "kind": modality.name,
            "source": _portable(modality.source, folder),
            "revision": modality.revision,
            "settings": modality.settings.model_dump(mode="json"),
        }
        for name, modality in processor.modalities.items()
    }
    settings = {
        "processor_class": "MMTuneProcessor",
        "template": processor.template,
        "placeholder_ids": processor.placeholder_ids,
        "slots": processor.slots,
        **({"lead": asdict(processor.lead)} if processor.lead is not None else {}),
        "modalities": modalities,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROCESSOR_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_settings(source: str, revision: str | None) -> tuple[dict[str, Any], Path]:
    """The settings and the folder that they were read from.

    Raises:
        CheckpointError: No such file, or a damaged one.
    """
    if Path(source).is_dir():
        path = Path(source) / PROCESSOR_FILE
    else:
        found = cached_file(source, PROCESSOR_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
        path = Path(found or PROCESSOR_FILE)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"No processor can be read from '{source}': {error}",
            where=str(path),
            fix="give a folder that mmtune wrote, or convert the checkpoint with mmtune convert",
        ) from error
    missing = [key for key in ("template", "placeholder_ids", "slots", "modalities") if key not in settings]
    if missing:
        raise CheckpointError(f"The processor's file lacks {', '.join(missing)}.", where=str(path))
    return settings, path.parent


def read_modalities(settings: Mapping[str, Any], folder: Path) -> dict[str, Modality]:
    """The modalities that the settings name; relative sources are found from the folder.

    Raises:
        CheckpointError: An encoder's configuration that is not there.
    """
    found = {}
    for name, entry in settings["modalities"].items():
        source = resolve_source(entry["source"], "vision", folder)
        kind = MODALITIES.load(entry["kind"])
        found[name] = kind.from_source(source, revision=entry["revision"], settings=entry["settings"])
    return found


def _portable(source: str, folder: Path) -> str:
    """Nano and hub ids by name, folders by the way that leads there from the checkpoint."""
    nano = resolve_source(NANO, "vision")
    if Path(source).is_dir() and Path(nano).is_dir() and os.path.samefile(source, nano):
        return NANO
    return relative_source(source, folder)
