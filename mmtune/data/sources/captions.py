"""Pictures with captions: one column (or tar member) with a picture or its path, one with the text.

Rows of CSV, TSV and parquet tables, of JSON, of WebDataset tars and of folders of pictures. A pair becomes a question
that is only the picture and an answer that is the caption, as the first training stage of LLaVA and VLoRA has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmtune.core.errors import nearest
from mmtune.data.checks import row_id
from mmtune.data.messages import RowError
from mmtune.data.sample import Media, Sample, Text, Turn
from mmtune.data.sources import SourceFormat

PICTURES = (
    "image", "images", "image_path", "img", "img_path", "picture", "photo", "file_name", "filename", "filepath", "file",
    "path", "jpg", "jpeg", "png", "webp", "image_url", "url",
)  # fmt: skip
CAPTIONS = ("caption", "captions", "text", "txt", "title", "description", "alt_text", "sentence")


def parse(row: dict[str, Any], default_id: str) -> Sample:
    """One pair as a sample.

    Raises:
        RowError: ``no_picture_column``, ``no_caption_column``, ``no_picture``, ``no_caption``, ``text_expected``,
            ``several_pictures``, ``bad_media_field`` or ``empty_media_path``.
    """
    lower = {str(key).lower(): key for key in row}
    picture, caption = _column(lower, PICTURES), _column(lower, CAPTIONS)
    if picture is None:
        raise _missing("no_picture_column", "picture", row, PICTURES)
    if caption is None:
        raise _missing("no_caption_column", "caption", row, CAPTIONS)
    extra = {key: value for key, value in row.items() if key not in (picture, caption, "id", "__key__")}
    name = row_id({"id": row["__key__"]} if "id" not in row and "__key__" in row else row, default_id)
    return captioned(name, row[picture], row[caption], extra)


def captioned(name: str, picture: Any, caption: Any, extra: Mapping[str, Any]) -> Sample:
    """The sample of a picture and its caption; of several captions the first is taken.

    Raises:
        RowError: As :func:`parse`.
    """
    if isinstance(caption, list) and caption:
        caption = caption[0]
    if caption is None or (isinstance(caption, str) and not caption.strip()):
        raise RowError("no_caption", "The caption is empty.", fix="fill it in or leave the row out")
    if not isinstance(caption, str):
        raise RowError("text_expected", f"The caption is {caption!r}, which is no text.", fix="give a text")
    turns = (Turn("user", (Media("image", _picture(picture)),)), Turn("assistant", (Text(caption.strip()),)))
    kept = {key: value for key, value in extra.items() if isinstance(value, str | int | float | bool)}
    return Sample(name, turns, extra=kept)


def _picture(value: Any) -> Any:
    """What opens the picture: a path, URL, or its bytes; tables of the hub hold ``{"bytes", "path"}``."""
    if isinstance(value, list):
        if len(value) != 1:
            raise RowError(
                "several_pictures", f"{len(value)} pictures for one caption.", fix="give one picture in a row"
            )
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if value is None:
        raise RowError("no_picture", "The row has no picture.", fix="give its path or leave the row out")
    if isinstance(value, str | bytes):
        if not value.strip():
            raise RowError("empty_media_path", "The path of the picture is empty.", fix="give a path")
        return value
    raise RowError("bad_media_field", f"The picture is given as {value!r}, which is no path.", fix="give a path")


def _column(lower: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((lower[name] for name in names if name in lower), None)


def _missing(reason: str, what: str, row: Mapping[str, Any], names: tuple[str, ...]) -> RowError:
    guess = next((guess for key in row if (guess := nearest(str(key), names))), None)
    near = next((str(key) for key in row if guess and nearest(str(key), [guess])), None)
    fix = f"rename '{near}' to '{guess}'" if near else f"name the column '{names[0]}'"
    return RowError(reason, f"No column holds the {what}; there are: {', '.join(map(str, row))}.", fix=fix)


def _recognises(row: Mapping[str, Any]) -> bool:
    lower = {str(key).lower(): key for key in row}
    return _column(lower, PICTURES) is not None and _column(lower, CAPTIONS) is not None


FORMAT = SourceFormat(parse, recognises=_recognises, describe="pictures with captions", columns=(*PICTURES, *CAPTIONS))
