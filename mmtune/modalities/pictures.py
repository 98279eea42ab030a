"""Opening pictures from anywhere a user may have them, as upright RGB."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from mmtune.core.errors import MediaError
from mmtune.modalities.opening import decode_data_uri

_ORIENTATION = 0x0112  # EXIF


class TooLargeError(MediaError):
    """A picture with more pixels than is safe to open."""


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What a picture is, before anything is done to it.

    Attributes:
        kind: Format as Pillow calls it ("JPEG").
        mode: Colours as Pillow calls them ("RGB", "CMYK", "P").
        frames: More than 1 for an animation, of which the first frame is used.
        rotated: Whether EXIF says that it must be turned.
    """

    width: int
    height: int
    kind: str
    mode: str
    frames: int
    rotated: bool


def open_picture(item: Any) -> Image.Image:
    """Open a path, ``data:`` URI, bytes or PIL image as an upright RGB picture.

    EXIF orientation is applied, alpha is dropped as the original systems do, 16-bit values are scaled to 8, and an
    animation gives its first frame.

    Raises:
        MediaError: Missing, empty, truncated, too large or not a picture.
    """
    with _saying_what_is_wrong(item):
        return _upright_rgb(_open(item))


def probe_picture(item: Any) -> PictureFacts:
    """Decode a picture only to know that it can be decoded; a JPEG at an eighth of its size, which reads all of it.

    Raises:
        MediaError: As :func:`open_picture`.
    """
    with _saying_what_is_wrong(item), _open(item) as image:
        facts = PictureFacts(
            image.width,
            image.height,
            str(image.format),
            image.mode,
            int(getattr(image, "n_frames", 1)),
            image.getexif().get(_ORIENTATION, 1) not in (0, 1),
        )
        if image.format == "JPEG":
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
        return facts


@contextmanager
def _saying_what_is_wrong(item: Any) -> Iterator[None]:
    where = item if isinstance(item, (str, Path)) and not str(item).startswith("data:") else "picture in memory"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeError(
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
        return Image.open(io.BytesIO(decode_data_uri(item)))
    if isinstance(item, (str, Path)):
        if str(item).startswith(("http://", "https://")):
            raise MediaError(f"URLs are not opened: {item}", where=str(item), fix="download the picture first")
        return Image.open(item)
    raise MediaError(f"A {type(item).__name__} is not a picture.", fix="give a path, data URI, bytes or a PIL image")


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        high = image.getextrema()[1]
        scale = 255.0 / 65535.0 if isinstance(high, (int, float)) and high > 255 else 1.0
        image = image.convert("F").point(lambda value: value * scale).convert("L")
    return image.convert("RGB")
