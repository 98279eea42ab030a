"""How rows come out of files: one file a kind of container, found by its content, whatever its name.

A third party adds its own by the entry-point group ``mmtune.readers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmtune.core.registry import Registry
from mmtune.data.reading import RawRow


@dataclass(frozen=True)
class Reader:
    """One kind of container.

    Attributes:
        claims: Whether a file or folder is of this kind; asked of existing paths.
        rows: Its rows, one at a time, at constant memory.
        whole: Whether a folder that it claims is never looked into for single data files.
        count: How many rows there are, where that is known without reading them; None otherwise.
    """

    claims: Callable[[Path], bool]
    rows: Callable[[Path], Iterator[RawRow]]
    count: Callable[[Path], int] | None = None
    whole: bool = False


READERS = Registry(
    "container",
    "mmtune.readers",
    {
        "parquet": "mmtune.data.readers.parquet:READER",
        "tar": "mmtune.data.readers.tar:READER",
        "arrow": "mmtune.data.readers.arrow:READER",
        "delimited": "mmtune.data.readers.delimited:READER",
        "pictures": "mmtune.data.readers.pictures:READER",
        "json": "mmtune.data.readers.json:READER",
    },
)
_ORDER = ("parquet", "tar", "arrow", "delimited", "pictures", "json")


def find_reader(path: Path) -> Reader:
    """The reader of a path; JSON, which says what is wrong with it, when none claims it."""
    names = [*(name for name in READERS.names() if name not in _ORDER), *_ORDER]
    readers = (READERS.load(name) for name in names)
    return next((reader for reader in readers if reader.claims(path)), READERS.load("json"))
