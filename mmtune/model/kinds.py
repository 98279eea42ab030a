"""Which modality of a model reads a medium, whatever name the data have for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mmtune.core.errors import DataError, UsageError
from mmtune.data.markers import GENERAL, LIST_KEYS
from mmtune.data.sample import Media, Sample
from mmtune.modalities.base import Modality


def modality_of(kind: str, modalities: Mapping[str, Modality]) -> str | None:
    """The name of the model's modality for a kind of media; None where there is none, or not exactly one.

    A medium goes to the modality of its own name, else one of a general kind (``audio``) to the only one that takes
    such, and one of a published kind (``audio_whisper``) to the modality of the general kind.
    """
    if kind in modalities:
        return kind
    if kind in GENERAL:
        return GENERAL[kind] if GENERAL[kind] in modalities else None
    fitting = [name for name, modality in modalities.items() if kind in modality.takes]
    return fitting[0] if len(fitting) == 1 else None


def check_distinct(modalities: Mapping[str, Modality]) -> None:
    """Refuse modalities that a text or row could not tell apart.

    Raises:
        UsageError: Two with one marker or one key of rows, as two encoders of the same kind have.
    """
    for name, modality in modalities.items():
        for other, earlier in modalities.items():
            if other == name:
                break
            if modality.marker == earlier.marker or modality.data_key == earlier.data_key:
                raise UsageError(
                    f"'{other}' and '{name}' are both told by {modality.marker} and '{modality.data_key}'.",
                    where=f"model.encoders.{name}",
                    fix="keep one of them, or register a kind with a marker of its own (examples/add_a_modality.py)",
                )


def keys_of(modalities: Mapping[str, Modality]) -> dict[str, str]:
    """Key of a row to the modality whose items it lists: the model's own keys, and those of general kinds."""
    found = {key: modality_of(kind, modalities) for key, kind in LIST_KEYS.items()}
    known = {key: name for key, name in found.items() if name is not None}
    return {**known, **{modality.data_key: name for name, modality in modalities.items()}}


def with_own_names(sample: Sample, modalities: Mapping[str, Modality]) -> Sample:
    """The sample with its media called as the model calls them.

    Raises:
        DataError: A medium that no modality of the model takes, or more than one.
    """
    if all(item.modality in modalities for item in sample.media):
        return sample
    turns = []
    for turn in sample.turns:
        parts = tuple(_renamed(part, modalities) if isinstance(part, Media) else part for part in turn.parts)
        turns.append(replace(turn, parts=parts))
    return replace(sample, turns=tuple(turns))


def _renamed(item: Media, modalities: Mapping[str, Modality]) -> Media:
    name = modality_of(item.modality, modalities)
    if name is not None:
        return replace(item, modality=name)
    several = [name for name, modality in modalities.items() if item.modality in modality.takes]
    if several:
        keys = ", ".join(modalities[name].data_key for name in several)
        raise DataError(
            f"The row holds a medium of kind '{item.modality}', which {' and '.join(several)} of this model take.",
            fix=f"list it under the key of one of them: {keys}",
        )
    raise DataError(
        f"The row holds a medium of kind '{item.modality}', which this model does not take.",
        fix=f"use a model that does; this one takes: {', '.join(modalities) or 'text only'}",
    )
