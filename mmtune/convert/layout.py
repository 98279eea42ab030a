"""What a target writes: weights under its own names, and the files that go with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmtune.convert.plan import Part
from mmtune.convert.tensors import num_elements
from mmtune.convert.writer import Entry


@dataclass(frozen=True, slots=True)
class Layout:
    """A folder to write, and how to open it again.

    Args:
        parts: Weights with the documents beside them.
        opened_as: How a fresh process opens the folder: a name of :data:`mmtune.convert.opening.OPENERS`.
        finish: Called with the folder once all weights are there, to add tokenizer and processor.
        options: For the opener; plain values.
        to: Name of the target in the result.
        notes: What the target cannot hold and what was left open, for the user.
    """

    parts: tuple[Part, ...]
    opened_as: str
    to: str
    finish: Callable[[Path], None] = lambda folder: None
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor to write."""
        return tuple(entry for part in self.parts for entry in part.entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of all values to write."""
        return sum(entry.num_bytes for entry in self.entries)

    @property
    def num_parameters(self) -> int:
        """All values to write."""
        return sum(num_elements(entry.shape) for entry in self.entries)


def renamed(entries: Iterable[Entry], name: Callable[[str], str]) -> tuple[Entry, ...]:
    """The same tensors under other names."""
    return tuple(replace(entry, name=name(entry.name)) for entry in entries)
