"""Markers: the words that stand in a text where media go. A leaf, like :mod:`mmtune.data.sample`."""

from __future__ import annotations

from collections.abc import Mapping

MARKERS: dict[str, str] = {
    "image": "<image>",
    "audio": "<audio>",
    "video": "<video>",
    "document": "<document>",
}
LIST_KEYS: dict[str, str] = {
    "image": "image",
    "images": "image",
    "audio": "audio",
    "audios": "audio",
    "video": "video",
    "videos": "video",
    "document": "document",
    "documents": "document",
}
"""Key of a data row to the modality of the items it lists."""


def cut_at_markers(text: str, markers: Mapping[str, str] = MARKERS) -> list[tuple[str, str | None]]:
    """A text in reading order as (piece, None) and (marker, modality); empty pieces are left out.

    Where two markers begin at the same character, the longer one counts.
    """
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
