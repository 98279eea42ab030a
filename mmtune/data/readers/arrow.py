"""Data sets of the library ``datasets``: saved to disk, or streamed from the hub; media are left undecoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError, ResourceError
from mmtune.data.readers import Reader
from mmtune.data.reading import RawRow

_BATCH = 256


def _claims(path: Path) -> bool:
    if (path / "dataset_dict.json").is_file():
        return True
    return (path / "dataset_info.json").is_file() and (path / "state.json").is_file()


def _rows(path: Path) -> Iterator[RawRow]:
    try:
        yield from _numbered(_saved(path))
    except (OSError, ValueError) as error:  # Arrow's own errors are among them
        message = f"The data set is damaged: {_first_line(error)}"
        raise DataError(message, where=str(path), fix="copy it again, or save it again with save_to_disk") from error


def _count(path: Path) -> int:
    return sum(len(part) for _, part in _saved(path))


def _saved(path: Path) -> list[tuple[str | None, Any]]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"The data set cannot be read: {error}", where=str(path), fix="save it again with save_to_disk"
        ) from error
    if isinstance(found, DatasetDict):
        return [(name, _undecoded(part)) for name, part in found.items()]
    return [(None, _undecoded(found))]


def hub_rows(name: str) -> Iterator[RawRow]:
    """The rows of a data set on the hub, or of a folder that ``datasets.load_dataset`` reads, as a stream.

    Args:
        name: ``ORG/NAME``, ``ORG/NAME:SPLIT`` or ``ORG/NAME:CONFIG:SPLIT``; all splits unless one is named.

    Raises:
        ResourceError: The hub cannot be reached, or has no such data set.
        DataError: What it holds cannot be read.
    """
    from datasets import IterableDatasetDict, load_dataset

    source, *parts = name.split(":")
    split, config = (parts[-1] if parts else None), (parts[0] if len(parts) > 1 else None)
    try:
        found = load_dataset(source, config, split=split, streaming=True)
        tables = found.items() if isinstance(found, IterableDatasetDict) else [(split, found)]
        yield from _numbered((part, _undecoded(table)) for part, table in tables)
    except (OSError, ConnectionError) as error:
        raise ResourceError(
            f"'{source}' is no file or folder here and cannot be had from the hub: {_first_line(error)}",
            where=source,
            fix="check the spelling and the network, or download the data set",
        ) from error
    except (ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"The data set '{name}' cannot be read: {_first_line(error)}", where=name, fix="name ORG/NAME:CONFIG:SPLIT"
        ) from error


def _undecoded(data: Any) -> Any:
    """The same rows with pictures and sounds as bytes and paths."""
    from datasets import Audio, Image

    for name, feature in (data.features or {}).items():
        if isinstance(feature, Image | Audio):
            data = data.cast_column(name, type(feature)(decode=False))
    return data


def _numbered(parts: Iterable[tuple[str | None, Any]]) -> Iterator[RawRow]:
    index = 0
    for split, part in parts:
        for batch in part.iter(batch_size=_BATCH):
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield RawRow(index, index + 1, dict(zip(names, values, strict=True)), split)
                index += 1


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


READER = Reader(_claims, _rows, _count, whole=True)
