"""Opening the media of rows: not at all, one by one, or those of many rows with one call a modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmtune.core.errors import MediaError
from mmtune.data.sample import Sample
from mmtune.modalities.base import Modality
from mmtune.model.kinds import modality_of

Opener = Callable[[Modality, Any], dict[str, Tensor] | None]
"""(modality, item) -> the item opened and prepared; None when media are only counted."""


def leave_closed(modality: Modality, item: Any) -> None:
    """Open nothing: for counting positions."""


def open_one(modality: Modality, item: Any) -> dict[str, Tensor]:
    """Open an item when its turn comes."""
    return modality.load(item)


def open_together(samples: Sequence[Sample], modalities: Mapping[str, Modality]) -> Opener:
    """Open the media of all samples at once; each row gets its own, or the error of an item that cannot be opened."""
    items: dict[str, dict[int, Any]] = {}
    for sample in samples:
        for media in sample.media:
            name = modality_of(media.modality, modalities)
            if name is not None:  # what the model does not take is told when the row is encoded
                items.setdefault(name, {})[id(media.uri)] = media.uri
    opened = {
        (name, key): raw
        for name, found in items.items()
        for key, raw in zip(found, modalities[name].load_all(list(found.values())), strict=True)
    }
    names = {id(modality): name for name, modality in modalities.items()}

    def take(modality: Modality, item: Any) -> dict[str, Tensor]:
        raw = opened[names[id(modality)], id(item)]
        if isinstance(raw, MediaError):
            raise MediaError(raw.message, where=raw.where, fix=raw.fix)  # of its own: every row adds its name
        return raw

    return take
