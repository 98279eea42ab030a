"""Opening media from anywhere a user may have them: a file, bytes, or a ``data:`` URI."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import Any, BinaryIO

from mmtune.core.errors import MediaError


def decode_data_uri(uri: str) -> bytes:
    """The bytes of a ``data:…;base64,…`` URI.

    Raises:
        MediaError: Another kind of data URI, or broken base64.
    """
    head, _, body = uri.partition(",")
    if not head.endswith(";base64"):
        raise MediaError("A data URI must be base64-encoded.", where=head[:60], fix="write data:image/png;base64,…")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise MediaError(f"The data URI is no valid base64: {error}", where=head[:60], fix="encode it again") from error


def place_of(item: Any, kind: str) -> str:
    """How a medium is called in messages: its path, or that it is in memory."""
    named = isinstance(item, (str, Path)) and not str(item).startswith("data:")
    return str(item) if named else f"{kind} in memory"


def open_file(item: Any, kind: str, *, forms: str) -> BinaryIO:
    """A readable, seekable file that is not empty.

    Args:
        item: A path, ``data:`` URI or bytes.
        kind: What it should be ("sound"), for messages.
        forms: What may be given instead, for messages.

    Raises:
        MediaError: Missing, empty, a folder, a URL, unreadable, or an object of another kind.
    """
    if isinstance(item, (bytes, bytearray, memoryview)):
        return _filled(io.BytesIO(bytes(item)), item, kind)
    if isinstance(item, str) and item.startswith("data:"):
        return _filled(io.BytesIO(decode_data_uri(item)), item, kind)
    if not isinstance(item, (str, Path)):
        raise MediaError(f"A {type(item).__name__} is no {kind}.", fix=f"give {forms}")
    if str(item).startswith(("http://", "https://")):
        raise MediaError(f"URLs are not opened: {item}", where=str(item), fix=f"download the {kind} first")
    try:
        return _filled(Path(item).open("rb"), item, kind)
    except FileNotFoundError as error:
        raise MediaError(f"No such {kind}: {item}", where=str(item), fix="check the path") from error
    except IsADirectoryError as error:
        raise MediaError(f"A folder was given, not a {kind}: {item}", where=str(item), fix="name a file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise MediaError(f"The {kind} cannot be read: {error}", where=str(item), fix="check the file") from error


def _filled(file: BinaryIO, item: Any, kind: str) -> BinaryIO:
    if not file.read(1):
        file.close()
        raise MediaError(f"The {kind} is empty.", where=place_of(item, kind), fix="copy it again")
    file.seek(0)
    return file
