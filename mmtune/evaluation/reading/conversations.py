"""Rows of conversation files for evaluation: a row whose media are missing stays, and fails when it is asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError
from mmtune.data.dataset import load_samples
from mmtune.data.locate import data_files
from mmtune.data.packing import MANIFEST
from mmtune.data.sample import Media, Sample, Turn
from mmtune.data.tables import SampleTable
from mmtune.evaluation.reading.pictures import MissingPicture, Pictures


def read_conversations(
    path: Path, media_root: Sequence[str | Path] = (), *, look: bool = True
) -> tuple[list[Sample], list[Path]]:
    """The rows of a conversation file or prepared folder, and the files that stand for the data.

    Args:
        look: Whether media are looked up at all.

    Raises:
        DataError: No such data, or rows that are no conversations.
    """
    if (path / MANIFEST).is_file():
        table = load_samples(path, media_root=tuple(media_root))
        files = [path / MANIFEST, *sorted(path.glob("*.parquet"))]
        return [_settled(table, index) for index in range(len(table))], files
    table = load_samples(path, media_root=tuple(media_root), check_media="none")
    files = data_files(path)
    if not look:
        return list(table), files
    folder = Path(os.path.abspath(table.sources[0])).parent
    pictures = Pictures(folder, media_root)
    return [_found(sample, pictures, folder) for sample in table], files


def _settled(table: SampleTable, index: int) -> Sample:
    """A row of prepared data with its media, or with the reason why they are missing."""
    try:
        sample: Sample = table[index]
    except DataError as error:
        sample = table.rows[index]
        return _with_media(sample, [MissingPicture(str(item.uri), error) for item in sample.media])
    return sample


def _found(sample: Sample, pictures: Pictures, folder: Path) -> Sample:
    """A row with its media looked up; nobody has looked so far, and their paths begin with the data's folder."""
    return _with_media(sample, [_look_up(item.uri, pictures, folder) for item in sample.media])


def _look_up(uri: Any, pictures: Pictures, folder: Path) -> Any:
    if not isinstance(uri, str) or uri.startswith("data:"):
        return uri
    inside = os.path.commonpath([os.path.abspath(uri), folder]) == str(folder)
    return pictures.file(os.path.relpath(uri, folder) if inside else uri)


def _with_media(sample: Sample, uris: Sequence[Any]) -> Sample:
    if not uris:
        return sample
    left = iter(uris)
    turns = tuple(
        Turn(turn.role, tuple(Media(p.modality, next(left)) if isinstance(p, Media) else p for p in turn.parts))
        for turn in sample.turns
    )
    return replace(sample, turns=turns)
