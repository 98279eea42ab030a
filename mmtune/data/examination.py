"""Looking at a medium that was found: its size, its hash, its type, whether it opens, and what is odd about it."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from dataclasses import dataclass
from typing import Any

from mmtune.core.errors import MediaError
from mmtune.data.markers import GENERAL
from mmtune.data.media import CheckMedia, Found, data_uri_bytes
from mmtune.data.messages import RowError
from mmtune.data.sample import Media

_TYPES = {  # not the system's table, which differs from machine to machine
    **{".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"},
    **{".bmp": "image/bmp", ".tif": "image/tiff", ".tiff": "image/tiff"},
    **{".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"},
    **{".mp4": "video/mp4", ".webm": "video/webm", ".mkv": "video/x-matroska", ".avi": "video/x-msvideo"},
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a medium.

    Attributes:
        size: Bytes; None when nobody looked.
        sha256: Of its bytes, as hex digits; None unless the bytes were read.
        type: Media type such as ``image/jpeg``: by content when it was decoded, else by its name.
        content: The bytes themselves, when they are to be embedded.
        warnings: (code, text) of what is odd but can be used.
    """

    size: int | None = None
    sha256: str | None = None
    type: str | None = None
    content: bytes | None = None
    warnings: tuple[tuple[str, str], ...] = ()


def examine(media: Media, found: Found, how: CheckMedia, *, embed: bool = False) -> Facts:
    """Look at a medium, as closely as ``how`` says.

    Args:
        embed: Also read the bytes.

    Raises:
        RowError: With the reason ``media_is_folder``, ``media_not_a_file``, ``media_empty``, ``media_unreadable``,
            ``media_damaged``, ``media_too_large`` or ``media_one_pixel``.
    """
    if found.rule == "inline":
        kind, warnings = _decode(media, found.value) if how == "decode" else (None, ())
        return Facts(type=kind, warnings=warnings)
    if found.rule == "url":
        return Facts(type=_type_of(found.path))
    if found.rule in ("data-uri", "embedded"):
        return _inside(media, found, how)
    if how == "none" and not embed:
        return Facts(type=_type_of(found.path))
    size = _check_file(found.path)
    content = _read(found.path) if embed else None
    if how != "decode":
        digest = hashlib.sha256(content).hexdigest() if content is not None else None
        return Facts(size, digest, _type_of(found.path), content)
    digest = hashlib.sha256(content).hexdigest() if content is not None else _sha256(found.path)
    kind, warnings = _decode(media, found.path if content is None else content)
    return Facts(size, digest, kind or _type_of(found.path), content, warnings)


def _inside(media: Media, found: Found, how: CheckMedia) -> Facts:
    content = data_uri_bytes(found.path) if found.rule == "data-uri" else bytes(media.uri)
    if not content:
        raise RowError("media_empty", "The medium has no bytes.", fix="write it again")
    kind, warnings = _decode(media, content) if how == "decode" else (None, ())
    if kind is None and found.rule == "data-uri":
        kind = found.path[5:].partition(";")[0] or None
    return Facts(len(content), hashlib.sha256(content).hexdigest(), kind, content, warnings)


def _decode(media: Media, item: Any) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """Open a medium of a known kind: its type and what is odd about it, both known of pictures alone."""
    kind = GENERAL.get(media.modality, media.modality)
    if kind != "image":
        try:
            _open(kind, item)
        except MediaError as error:
            raise RowError("media_damaged", error.message, fix=error.fix) from error
        return None, ()
    from mmtune.modalities.pictures import TooLargeError, probe_picture

    try:
        facts = probe_picture(item)
    except TooLargeError as error:
        raise RowError("media_too_large", error.message, fix=error.fix) from error
    except MediaError as error:
        raise RowError("media_damaged", error.message, fix=error.fix) from error
    if facts.width == facts.height == 1:
        raise RowError(
            "media_one_pixel", "The picture is a single pixel, as trackers are.", fix="fetch the picture itself"
        )
    odd = [
        ("cmyk", facts.mode == "CMYK", "a CMYK picture, converted to RGB"),
        ("palette", facts.mode == "P", "a picture with a palette, converted to RGB"),
        ("transparency", facts.mode in ("RGBA", "LA", "PA"), "a picture with transparency, which is dropped"),
        ("animated", facts.frames > 1, f"an animation of {facts.frames} frames, of which the first is used"),
        ("rotated", facts.rotated, "a picture that EXIF turns"),
        ("extreme_aspect", max(facts.width, facts.height) > 20 * min(facts.width, facts.height), "a very long picture"),
    ]
    return f"image/{facts.kind.lower()}", tuple((code, text) for code, holds, text in odd if holds)


def _open(kind: str, item: Any) -> None:
    """Open a sound, video, document or vectors to see whether that goes well; other kinds are left alone.

    Raises:
        MediaError: It does not.
        MissingExtraError: What is needed for it is not installed.
    """
    if kind == "audio":
        from mmtune.modalities.waveform import probe_sound

        probe_sound(item)
    elif kind == "video":
        from mmtune.modalities.frames import open_frames

        open_frames(item, 1, "uniform", 0, max_seconds=math.inf)
    elif kind == "document":
        from mmtune.modalities.texts import MAX_CHARACTERS, open_text

        open_text(item, max_characters=MAX_CHARACTERS)
    elif kind == "embedding":
        from mmtune.modalities.embedding import read_array
        from mmtune.modalities.opening import place_of

        read_array(item, place_of(item, "embedding"))


def _check_file(path: str) -> int:
    try:
        found = os.stat(path)
    except OSError as error:
        raise RowError("media_unreadable", f"{path}: {error.strerror}.", fix="check the file") from error
    if stat.S_ISDIR(found.st_mode):
        raise RowError("media_is_folder", f"{path} is a folder.", fix="name a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise RowError("media_not_a_file", f"{path} is a device or a pipe.", fix="name a file")
    if found.st_size == 0:
        raise RowError("media_empty", f"{path} is empty.", fix="copy it again")
    if not found.st_mode & stat.S_IROTH and not os.access(path, os.R_OK):
        raise RowError("media_unreadable", f"No permission to read {path}.", fix="change the file's permissions")
    return found.st_size


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise RowError("media_unreadable", f"{path}: {error.strerror}.", fix="check the file") from error


def _sha256(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise RowError("media_unreadable", f"{path}: {error.strerror}.", fix="check the file") from error


def _type_of(path: str) -> str | None:
    return _TYPES.get(os.path.splitext(path)[1].lower())
