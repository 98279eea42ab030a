"""Data formats: one file a format, each a function from a row of JSON to a Sample.

A third party adds its own by the entry-point group ``mmtune.sources``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmtune.core.errors import DataError
from mmtune.core.registry import Registry
from mmtune.data.sample import Sample

ParseRow = Callable[[dict[str, Any], str], Sample]
"""(row, id to use when the row has none) -> sample; raises RowError."""

SOURCES = Registry(
    "data format",
    "mmtune.sources",
    {"llava": "mmtune.data.sources.llava:parse", "messages": "mmtune.data.sources.messages:parse"},
)
_TELLING_KEYS = {"conversations": "llava", "messages": "messages"}


def detect(row: Any, where: str) -> str:
    """The name of the format that a row is in.

    Raises:
        DataError: A row of no known format.
    """
    if isinstance(row, dict):
        for key, name in _TELLING_KEYS.items():
            if key in row:
                return name
        shown = f"an object with the keys {', '.join(sorted(map(str, row))) or '(none)'}"
    else:
        shown = f"{type(row).__name__}"
    raise DataError(
        f"The format cannot be told: the first row is {shown}.",
        where=where,
        fix="give rows with 'conversations' (LLaVA) or 'messages', or name the format with --format",
        allowed=SOURCES.names(),
    )
