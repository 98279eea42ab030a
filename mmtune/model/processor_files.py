"""The processor's own file, ``mmtune_processor.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from mmtune.core.errors import CheckpointError
from mmtune.methods.base import Frame, Lead
from mmtune.modalities.base import Modality
from mmtune.model.sources import NANO, read_modality, relative_source, resolve_source

PROCESSOR_FILE = "mmtune_processor.json"
POSITIONS = "positions"
Slots = int | str  # ids an item gets: a fixed number, ``positions``, or a multiple of them, ``10 * positions``


class HasSettings(Protocol):
    """What a processor keeps in its file."""

    tokenizer: PreTrainedTokenizerBase
    modalities: dict[str, Modality]
    template: str
    placeholder_ids: dict[str, int]
    slots: dict[str, Slots]
    lead: Lead | None
    frame: Frame | None


def num_slots(slots: Slots, positions: int) -> int:
    """Placeholder ids of an item with so many encoder positions."""
    if isinstance(slots, int):
        return slots
    factor, _, _ = slots.rpartition(f" * {POSITIONS}")
    return int(factor or 1) * positions


def slots_of(count: Callable[[int], int]) -> Slots:
    """How to write down a method's count of placeholders for an item with so many positions."""
    first, second = count(7), count(11)
    if first == second or first * 11 != second * 7:
        return first
    return POSITIONS if first == 7 else f"{first // 7} * {POSITIONS}"


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
        **({"frame": asdict(processor.frame)} if processor.frame is not None else {}),
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
        found[name] = read_modality(name, entry, folder)
    return found


def _portable(source: str, folder: Path) -> str:
    """Nano and hub ids by name, folders by the way that leads there from the checkpoint."""
    nano = resolve_source(NANO, "vision")
    if Path(source).is_dir() and Path(nano).is_dir() and os.path.samefile(source, nano):
        return NANO
    return relative_source(source, folder)
