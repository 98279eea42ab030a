"""Opening documents: text itself, or a text file in UTF-8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmtune.core.errors import MediaError
from mmtune.modalities.opening import open_file, place_of

MAX_CHARACTERS = 10_000_000  # of a document that is read at all, unless told otherwise
_FORMS = 'the path of a text file, its bytes, or {"text": "…"}'


def open_text(item: Any, *, max_characters: int) -> str:
    """The text of a document.

    Args:
        item: ``{"text"}`` with the text itself; or a path, ``data:`` URI, bytes or ``{"path"}`` of a file in UTF-8.
        max_characters: Longest document that is read.

    Raises:
        MediaError: Missing, empty, too long, or no text in UTF-8.
    """
    if isinstance(item, Mapping) and isinstance(item.get("text"), str):
        where, text = place_of(item, "document"), item["text"]
    else:
        given = item.get("path") if isinstance(item, Mapping) else item
        where, text = place_of(given, "document"), _decoded(given, max_characters)
    if "\0" in text:
        raise MediaError("The document is no text: it holds NUL characters.", where=where, fix="save it as text")
    if not text.strip():
        raise MediaError("The document is empty.", where=where, fix="give a text")
    if len(text) > max_characters:
        raise MediaError(
            f"The document has more than {max_characters} characters.",
            where=where,
            fix="cut it, or raise settings.max_characters of the encoder",
        )
    return str(text)


def _decoded(item: Any, max_characters: int) -> str:
    with open_file(item, "document", forms=_FORMS) as file:
        content = file.read(4 * max_characters + 4)  # a character has four bytes at most, the mark of UTF-8 three
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start >= len(content) - 3 and len(content) > 4 * max_characters:  # the cut went through a character
            return content[: error.start].decode("utf-8-sig")
        raise MediaError(
            "The document is no text in UTF-8.", where=place_of(item, "document"), fix="save it as plain text in UTF-8"
        ) from error
