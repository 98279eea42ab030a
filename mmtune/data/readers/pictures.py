"""A folder of pictures, each with its caption in a text file of the same name (``cat.jpg``, ``cat.txt``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mmtune.data.messages import RowError
from mmtune.data.readers import Reader
from mmtune.data.reading import RawRow

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_CAPTIONS = (".txt", ".caption")


def _claims(path: Path) -> bool:
    if not path.is_dir():
        return False
    names = next(((folder, files) for folder, _, files in os.walk(path) if _pictures(files)), None)
    return names is not None and any(_caption_of(Path(names[0]) / name) for name in _pictures(names[1])[:100])


def _rows(path: Path) -> Iterator[RawRow]:
    index = 0
    for folder, below, names in os.walk(path):
        below.sort()
        for name in _pictures(names):
            yield RawRow(index, index + 1, _row(Path(folder) / name, path))
            index += 1


def _pictures(names: list[str]) -> list[str]:
    return sorted(name for name in names if name.lower().endswith(_PICTURES))


def _caption_of(picture: Path) -> Path | None:
    return next((file for ending in _CAPTIONS if (file := picture.with_suffix(ending)).is_file()), None)


def _row(picture: Path, root: Path) -> dict[str, str] | RowError:
    shown = picture.relative_to(root)
    file = _caption_of(picture)
    if file is None:
        return RowError("no_caption", f"'{shown}' has no caption.", fix=f"write it to {shown.with_suffix('.txt')}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        return RowError("caption_unreadable", f"The caption of '{shown}' cannot be read: {error}", fix="save as UTF-8")
    return {"id": str(shown.with_suffix("")), "image": str(shown), "caption": text}


READER = Reader(_claims, _rows)
