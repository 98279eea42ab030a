"""Markers: the words that stand in a text where media go. A leaf, like :mod:`mmtune.data.sample`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

MARKERS: dict[str, str] = {
    "image": "<image>",
    "audio": "<audio>",
    "video": "<video>",
    "document": "<document>",
}
OTHER_MARKERS: dict[str, str] = {
    "audio_whisper": "<speech>",
    "audio_clap": "<sound>",
    "imagebind": "<imagebind>",
    "embedding": "<embedding>",
}
"""Markers that count only in rows that have the key of their modality; elsewhere they are text."""
ALL_MARKERS = {**MARKERS, **OTHER_MARKERS}
LIST_KEYS: dict[str, str] = {
    "image": "image",
    "images": "image",
    "audio": "audio",
    "audios": "audio",
    "video": "video",
    "videos": "video",
    "document": "document",
    "documents": "document",
    "speech_audios": "audio_whisper",
    "sounds": "audio_clap",
    "imagebinds": "imagebind",
    "embeddings": "embedding",
}
"""Key of a data row to the modality of the items it lists."""
_OTHER_KEYS = tuple((key, modality) for key, modality in LIST_KEYS.items() if modality in OTHER_MARKERS)
GENERAL: dict[str, str] = {
    "vision_clip": "image",
    "audio_whisper": "audio",
    "audio_clap": "audio",
    "video_xclip": "video",
    "document_gte": "document",
}
"""Modalities of published multi_token checkpoints to the general kind of media that they read."""


def markers_of(row: Mapping[str, Any]) -> Mapping[str, str]:
    """The markers that count in a row."""
    named = {modality for key, modality in _OTHER_KEYS if row.get(key) is not None}
    if not named:
        return MARKERS
    return {**MARKERS, **{modality: marker for modality, marker in OTHER_MARKERS.items() if modality in named}}


def cut_at_markers(text: str, markers: Mapping[str, str] = MARKERS) -> list[tuple[str, str | None]]:
    """A text in reading order as (piece, None) and (marker, modality); empty pieces are left out.

    Where two markers begin at the same character, the longer one counts.
    """
    pattern = _pattern(tuple(markers.values()))
    if pattern.search(text) is None:
        return [(text, None)] if text else []
    names = {marker: modality for modality, marker in sorted(markers.items(), reverse=True)}
    return [(piece, names.get(piece)) for piece in pattern.split(text) if piece]


@lru_cache
def _pattern(markers: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the markers, as a group, so that splitting keeps them."""
    longest_first = sorted(filter(None, markers), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
