"""Opening pictures from anywhere a user may have them, as upright RGB."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from mmtune.core.errors import MediaError


def open_picture(item: Any) -> Image.Image:
    """Open a path, ``data:`` URI, bytes or PIL image as an upright RGB picture.

    EXIF orientation is applied, alpha is dropped as the original systems do, 16-bit values are scaled to 8, and an
    animation gives its first frame.

    Raises:
        MediaError: Missing, empty, truncated, too large or not a picture.
    """
    where = item if isinstance(item, (str, Path)) and not str(item).startswith("data:") else "picture in memory"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _upright_rgb(_open(item))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(
            f"The picture is too large to open safely: {error}", where=str(where), fix="scale it down first"
        ) from error
    except FileNotFoundError as error:
        raise MediaError(f"No such picture: {where}", where=str(where), fix="check the path") from error
    except IsADirectoryError as error:
        raise MediaError(
            f"A folder was given, not a picture: {where}", where=str(where), fix="name a file in it"
        ) from error
    except UnidentifiedImageError as error:
        raise MediaError(
            f"Not a picture, or a damaged one: {where}",
            where=str(where),
            fix="give a PNG, JPEG, WebP, GIF, BMP or TIFF",
        ) from error
    except PermissionError as error:
        raise MediaError(
            f"No permission to read {where}", where=str(where), fix="change the file's permissions"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's several words for damaged files
        raise MediaError(
            f"The picture is damaged: {error}", where=str(where), fix="save it again or remove it"
        ) from error


def _open(item: Any) -> Image.Image:
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, (bytes, bytearray, memoryview)):
        return Image.open(io.BytesIO(bytes(item)))
    if isinstance(item, str) and item.startswith("data:"):
        return Image.open(io.BytesIO(_decode_uri(item)))
    if isinstance(item, (str, Path)):
        if str(item).startswith(("http://", "https://")):
            raise MediaError(f"URLs are not opened: {item}", where=str(item), fix="download the picture first")
        return Image.open(item)
    raise MediaError(f"A {type(item).__name__} is not a picture.", fix="give a path, data URI, bytes or a PIL image")


def _decode_uri(uri: str) -> bytes:
    head, _, body = uri.partition(",")
    if not head.endswith(";base64"):
        raise MediaError("A data URI must be base64-encoded.", where=head[:60], fix="write data:image/png;base64,…")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise MediaError(f"The data URI is no valid base64: {error}", where=head[:60], fix="encode it again") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        high = image.getextrema()[1]
        scale = 255.0 / 65535.0 if isinstance(high, (int, float)) and high > 255 else 1.0
        image = image.convert("F").point(lambda value: value * scale).convert("L")
    return image.convert("RGB")
