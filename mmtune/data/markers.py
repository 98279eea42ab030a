"""Markers: the words that stand in a text where media go. A leaf, like :mod:`mmtune.data.sample`."""

from __future__ import annotations

from collections.abc import Mapping
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
GENERAL: dict[str, str] = {
    "vision_clip": "image",
    "audio_whisper": "audio",
    "audio_clap": "audio",
    "video_xclip": "video",
    "document_gte": "document",
}
"""Modalities of published multi_token checkpoints to the general kind of media that they read."""


def markers_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The markers that count in a row."""
    named = {modality for key, modality in LIST_KEYS.items() if row.get(key) is not None}
    return {**MARKERS, **{modality: marker for modality, marker in OTHER_MARKERS.items() if modality in named}}


def cut_at_markers(text: str, markers: Mapping[str, str] = MARKERS) -> list[tuple[str, str | None]]:
    """A text in reading order as (piece, None) and (marker, modality); empty pieces are left out.

    Where two markers begin at the same character, the longer one counts.
    """
    if not any(marker in text for marker in markers.values()):
        return [(text, None)] if text else []
    found: list[tuple[str, str | None]] = []
    position = 0
    while position < len(text):
        hits = [
            (at, -len(marker), name) for name, marker in markers.items() if (at := text.find(marker, position)) >= 0
        ]
        if not hits:
            found.append((text[position:], None))
            break
        at, negative_length, name = min(hits)
        if at > position:
            found.append((text[position:at], None))
        found.append((text[at : at - negative_length], name))
        position = at - negative_length
    return found
