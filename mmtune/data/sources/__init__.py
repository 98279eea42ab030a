"""Data formats: one file a format, each turning a row into a Sample.

A third party adds its own by the entry-point group ``mmtune.sources``: a :class:`SourceFormat`, or only a function from
a row to a Sample, which is then used when it is named with ``--format``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError, UsageError, nearest
from mmtune.core.registry import Registry
from mmtune.data.reading import RawRow
from mmtune.data.sample import Sample

ParseRow = Callable[[dict[str, Any], str], Sample]
"""(row, id to use when the row has none) -> sample; raises RowError."""


def _nothing(_: Any) -> bool:
    return False


@dataclass(frozen=True)
class SourceFormat:
    """One data format.

    Attributes:
        parse: One row as a sample; raises ``RowError`` with a reason code.
        recognises: Whether a first row looks like this format; the first format of :data:`ORDER` that says so is taken.
        claims: Whether a path is in this format as a whole (a folder of several files, say) and read by ``read``.
        read: The rows of a path that the general readers cannot read, with numbers and lines.
        describe: What the format is called in messages.
        columns: Keys that rows are told by, for finding misspelt ones.
        variant: The same format with the options that a name may have behind a colon, ``NAME:OPTIONS``.
    """

    parse: ParseRow
    recognises: Callable[[Mapping[str, Any]], bool] = _nothing
    claims: Callable[[Path], bool] = _nothing
    read: Callable[[Path], Iterator[RawRow]] | None = None
    describe: str = ""
    variant: Callable[[str], SourceFormat] | None = None
    columns: Sequence[str] = ()


SOURCES = Registry(
    "data format",
    "mmtune.sources",
    {
        "llava": "mmtune.data.sources.llava:FORMAT",
        "sharegpt": "mmtune.data.sources.sharegpt:FORMAT",
        "messages": "mmtune.data.sources.messages:FORMAT",
        "alpaca": "mmtune.data.sources.alpaca:FORMAT",
        "capsfusion": "mmtune.data.sources.capsfusion:FORMAT",
        "captions": "mmtune.data.sources.captions:FORMAT",
        "lavin": "mmtune.data.sources.lavin:FORMAT",
        "scienceqa": "mmtune.data.sources.scienceqa:FORMAT",
    },
)
ORDER = ("sharegpt", "llava", "messages", "lavin", "alpaca", "capsfusion", "scienceqa", "captions")
"""Built-in formats in the order that they are asked in; those of others come after them, by name."""


def load_format(name: str) -> SourceFormat:
    """The format of a name, or of a name and its options, as in ``scienceqa:QCM-A,captions``.

    Raises:
        UsageError: No such format, or options that it does not have.
    """
    name, colon, options = name.partition(":")
    loaded = SOURCES.load(name, where="--format")
    found = loaded if isinstance(loaded, SourceFormat) else SourceFormat(loaded)
    if not colon:
        return found
    if found.variant is None:
        raise UsageError(f"The format '{name}' has no options.", where="--format", fix=f"use --format {name}")
    return found.variant(options)


def all_formats() -> Iterator[tuple[str, SourceFormat]]:
    """Every format by name, in the order that they are asked in."""
    names = [*ORDER, *(name for name in SOURCES.names() if name not in ORDER)]
    return ((name, load_format(name)) for name in names)


def detect(row: Any, where: str) -> str:
    """The name of the format that a row is in.

    Raises:
        DataError: A row of no known format.
    """
    if isinstance(row, dict):
        for name, known in all_formats():
            if known.recognises(row):
                return name
        shown, fix = f"an object with the keys {', '.join(sorted(map(str, row))) or '(none)'}", _renaming(row)
    else:
        shown, fix = f"{type(row).__name__}", None
    raise DataError(
        f"The format cannot be told: the first row is {shown}.",
        where=where,
        fix=fix
        or "give rows with 'conversations' (LLaVA), 'messages', 'instruction' and 'output', or a picture and a "
        "caption; or name the format: prepare-data has --format",
        allowed=SOURCES.names(),
    )


def _renaming(row: Mapping[str, Any]) -> str | None:
    """What to do about a key that is nearly one that a format is told by."""
    columns = {column for _, known in all_formats() for column in known.columns}
    for key in map(str, row):
        guess = nearest(key.lower(), columns)
        if guess is not None and key.lower() not in columns:
            return f"rename '{key}' to '{guess}'"
    return None


def claiming(path: Path) -> str | None:
    """The format that reads a path by itself, or None."""
    return next((name for name, known in all_formats() if known.read is not None and known.claims(path)), None)
