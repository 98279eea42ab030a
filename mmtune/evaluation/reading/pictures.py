"""The pictures of benchmark rows: inside tables, or files that a row names."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtune.core.errors import MediaError, MMTuneError
from mmtune.data.media import MediaLookup

_SHORT = 64  # a TSV's picture of at most so many characters is another row's index, or a file's name


class Pictures:
    """Finds the pictures of rows; one that is missing fails its row and no other.

    Args:
        folder: Where the data file lies.
        media_root: Further folders.
        look: Whether pictures are needed at all; given answers are scored without them.
    """

    def __init__(self, folder: Path, media_root: Sequence[str | Path] = (), *, look: bool = True) -> None:
        self._lookup = MediaLookup(folder, media_root)
        self._look = look

    def file(self, *names: str) -> Any:
        """The path of the first of several names that is found, or a :class:`MissingPicture`."""
        if not self._look:
            return names[0]
        problem: MMTuneError | None = None
        for name in names:
            try:
                return self._lookup.find(name).path
            except MMTuneError as error:
                problem = problem or error
        return MissingPicture(names[0], problem)

    def cell(self, cell: Any) -> list[Any]:
        """The pictures of a parquet cell: one, a list of them, or none."""
        if cell is None:
            return []
        if isinstance(cell, Mapping):
            content, path = cell.get("bytes"), cell.get("path")
            return [bytes(content)] if content else [self.file(str(path))] if path else []
        if isinstance(cell, list | tuple):
            return [picture for item in cell for picture in self.cell(item)]
        return [self.file(str(cell))]


class MissingPicture:
    """Stands for a picture that is not there, until somebody asks for it."""

    def __init__(self, name: str, problem: MMTuneError | None = None) -> None:
        self.name = name
        self.problem = problem or MediaError(f"No such picture: {name}", where=name, fix="give --media-root")

    def __str__(self) -> str:
        return self.name


def tsv_pictures(rows: Sequence[Mapping[str, Any]], pictures: Pictures) -> list[list[Any]]:
    """The pictures of each row of a VLMEvalKit table.

    A cell holds base64, a list of them as Python text, the index of the row that holds the picture, or a file's name.
    A table without the column names files in ``image_path``.
    """
    cells = {str(row.get("index")): row.get("image") for row in rows}
    return [_tsv_cell(row, cells, pictures) for row in rows]


def _tsv_cell(row: Mapping[str, Any], cells: Mapping[str, str | None], pictures: Pictures) -> list[Any]:
    if "image" not in row:
        return [pictures.file(name) for name in listed(row.get("image_path") or "")]
    cell = row["image"]
    if cell is None:
        return []
    if len(cell) <= _SHORT and cell in cells:
        there = cells[cell]
        if there is None or len(there) <= _SHORT:
            return [MissingPicture(f"the picture of row {cell}")]
        cell = there
    return [pictures.file(text) if len(text) <= _SHORT else f"data:image;base64,{text}" for text in listed(cell)]


def listed(text: str) -> list[str]:
    """The texts of a Python list written as text; any other text stands for itself, an empty one for nothing."""
    if text.startswith("[") and text.endswith("]"):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [text]
        if isinstance(value, list):
            return [str(item) for item in value]
    return [text] if text else []


def cluster_of(pictures: Iterable[Any], fallback: str) -> str:
    """A name that rows with the same pictures share; ``fallback`` for a row without any."""
    digest = hashlib.sha1(usedforsecurity=False)
    some = False
    for picture in pictures:
        some = True
        digest.update(picture if isinstance(picture, bytes) else str(picture).encode())
    return digest.hexdigest() if some else fallback
