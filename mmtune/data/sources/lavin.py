"""LaVIN's ``all_data.json``: ``{"all": [{"instruction", "answer", "image", "image_source", "qid", "options"}]}``.

The instruction holds the whole prompt, ``Instruction: … Response:``; the template ``lavin`` writes that frame, so it is
taken off here. Pictures are looked for as ``images/train2014/COCO_train2014_<image>``, those of ScienceQA as
``images/train/<qid>/image.png``.

Source:
    LaVIN (arXiv 2305.15023): the mixture of Alpaca's 52k rows and LLaVA's 158k.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmtune.data.messages import RowError
from mmtune.data.reading import RawRow, listed_rows
from mmtune.data.sample import Media, Sample, Text, Turn
from mmtune.data.sources import SourceFormat

_BEGINS = re.compile(rb'^(?:\xef\xbb\xbf)?\s*\{\s*"all"\s*:\s*\[')
_BEFORE, _AFTER = "Instruction: ", "Response:"
_OWN_KEYS = {"id", "instruction", "answer", "image", "image_source", "qid"}


def parse(row: dict[str, Any], default_id: str) -> Sample:
    """One row as a sample, its picture first.

    Raises:
        RowError: ``no_instruction``, ``no_answer``, or ``bad_media_field``.
    """
    name = str(row.get("qid") or row.get("id") or default_id)
    instruction, answer, image = row.get("instruction"), row.get("answer"), row.get("image")
    if not isinstance(instruction, str):
        raise RowError("no_instruction", "The row has no text 'instruction'.", fix="give the prompt")
    if not isinstance(answer, str):
        raise RowError("no_answer", "The row has no text 'answer'.", fix="give the answer")
    if image is not None and not isinstance(image, str):
        raise RowError("bad_media_field", f"'image' holds {image!r}, which is no path.", fix="give a path or null")
    parts: tuple[Any, ...] = (Text(_bare(instruction)),)
    if image:
        parts = (Media("image", _path(image, row.get("image_source"), name)), *parts)
    extra = {key: value for key, value in row.items() if key not in _OWN_KEYS and value is not None}
    return Sample(name, (Turn("user", parts), Turn("assistant", (Text(answer),))), extra=extra)


def _bare(instruction: str) -> str:
    """The instruction without the frame that the template writes."""
    text = instruction.rstrip()
    text = text.removesuffix(_AFTER).removesuffix("\n") if text.endswith(_AFTER) else instruction
    return text.removeprefix(_BEFORE)


def _path(image: str, source: Any, name: str) -> str:
    if source == "sqa":
        return f"images/train/{name}/image.png"
    return f"images/train2014/COCO_train2014_{image}" if source == "mscoco" else image


def recognises(row: Mapping[str, Any]) -> bool:
    """A row by its keys."""
    return "instruction" in row and "answer" in row and "image_source" in row


def claims(path: Path) -> bool:
    """Whether a file begins as ``all_data.json`` does."""
    if not path.is_file() or path.suffix != ".json":
        return False
    with path.open("rb") as file:
        return _BEGINS.match(file.read(256)) is not None


def read(path: Path) -> Iterator[RawRow]:
    """The rows of the file.

    Raises:
        DataError: Broken JSON.
    """
    return listed_rows(path, "all")


FORMAT = SourceFormat(parse, recognises, claims, read, "LaVIN: instruction, answer and image_source")
