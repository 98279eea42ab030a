"""Items of media as rows and requests give them, brought into the forms that modalities take. A leaf.

An item is a path, URL or ``data:`` URI (``str``), the bytes of a file, or a value that is the item itself:
``{"text"}``, ``{"array", "sampling_rate"}``, a list of numbers, a list of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmtune.core.errors import DataError

_TEXTS = ("document", "document_gte")  # a string is the text itself
_PATHS_BY_ENDING = ("imagebind",)  # a string is a path by its ending, or else a text
_ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_FRAMES = ("video", "video_xclip")
_NUMBERS = ("embedding",)
_SOUNDS = ("audio", "audio_whisper", "audio_clap", "imagebind")
_PARTS_OF_FILES = ("start_time", "end_time", "dataset_args")  # of the published system's rows
_KNOWN = (*_TEXTS, *_FRAMES, *_NUMBERS, *_SOUNDS, "image", "vision_clip")
_DETAILS = ("row", "key")  # which of the vectors of a file


class RowError(DataError):
    """A row of data that cannot be used.

    Args:
        reason: Short code that rejected rows are counted by.
    """

    code = "bad_row"

    def __init__(self, reason: str, message: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(message, where=where, fix=fix)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _row_error, (self.reason, self.message, self.where, self.fix)


def _row_error(reason: str, message: str, where: str | None, fix: str | None) -> RowError:
    return RowError(reason, message, where=where, fix=fix)


def settled_list(modality: str, value: Any, key: str) -> list[Any]:
    """The items under a key of a row: a list of them, or a single one.

    Raises:
        RowError: As :func:`settled_item`.
    """
    single = not isinstance(value, list) or (modality in _NUMBERS and _is_vector(value))
    return [settled_item(modality, item, key) for item in ([value] if single else value)]


def settled_item(modality: str, value: Any, key: str) -> Any:
    """One item in the form that modalities take.

    Args:
        key: Where it was given, for messages.

    Raises:
        RowError: No item of this modality (``bad_media_field``), an empty one (``empty_media_path``), or a piece of a
            file where whole files are taken (``unsupported_item``).
    """
    if modality not in _KNOWN and not isinstance(value, str | bytes | bytearray):
        return value  # of a modality from elsewhere, which says itself what it takes
    if isinstance(value, str | bytes | bytearray):
        if not value.strip():
            raise RowError("empty_media_path", f"'{key}' holds an empty path.", fix="give a path or null")
        return value if isinstance(value, bytes | bytearray) else _of_text(modality, value)
    found = _of_mapping(modality, value) if isinstance(value, Mapping) else _of_list(modality, value)
    if found is None:
        raise RowError("bad_media_field", f"'{key}' holds {value!r:.80}, which is no path.", fix="give a path or null")
    return found


def may_be_text(modality: str) -> bool:
    """Whether a string may be the item itself rather than where it lies; of modalities from elsewhere nobody knows."""
    return modality in (*_TEXTS, *_PATHS_BY_ENDING) or modality not in _KNOWN


def with_paths(item: Any, locate: Callable[[str], str]) -> Any:
    """The same item with every path in it replaced."""
    if isinstance(item, str):
        return locate(item)
    if isinstance(item, Mapping) and isinstance(item.get("path"), str):
        return {**item, "path": locate(item["path"])}
    if isinstance(item, list) and item and all(isinstance(frame, str) for frame in item):
        return [locate(frame) for frame in item]
    return item


def _of_text(modality: str, value: str) -> Any:
    named = value.startswith("data:") or value.lower().endswith(_ENDINGS)
    is_text = modality in _TEXTS or (modality in _PATHS_BY_ENDING and not named)
    return {"text": value} if is_text else value


def _of_mapping(modality: str, value: Mapping[str, Any]) -> Any:
    pieces = [name for name in _PARTS_OF_FILES if value.get(name) is not None]
    if pieces:
        raise RowError(
            "unsupported_item", f"The item names a part by '{pieces[0]}'.", fix="write that part to a file of its own"
        )
    if isinstance(value.get("text"), str) and may_be_text(modality):
        return settled_item(modality, value["text"], "text")
    if value.get("array") is not None and modality in _SOUNDS:
        return {"array": value["array"], "sampling_rate": value.get("sampling_rate")}
    if isinstance(value.get("bytes"), bytes) and value["bytes"]:
        return value["bytes"]
    if isinstance(value.get("data"), str) and isinstance(value.get("format"), str):  # OpenAI's input_audio
        return f"data:{modality}/{value['format']};base64,{value['data']}"
    path = value.get("path") or value.get("url")
    if not isinstance(path, str) or not path.strip():
        return None
    details = {name: value[name] for name in _DETAILS if value.get(name) is not None} if modality in _NUMBERS else {}
    return {"path": path, **details} if details else path


def _of_list(modality: str, value: Any) -> Any:
    if not isinstance(value, list) or not value:
        return None
    if modality in _NUMBERS and (_is_vector(value) or all(_is_vector(one) for one in value)):
        return value
    if modality in _FRAMES and all(isinstance(frame, str) and frame.strip() for frame in value):
        return value
    return None


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, int | float) for one in value)
