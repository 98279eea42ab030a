"""The slot: where what a method put inside a language model finds the perception of the call under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmtune.core.perception import Perception


class Slot:
    """One plain attribute, shared by a model and what acts inside it.

    A plain attribute keeps ``torch.compile`` free of graph breaks; a ContextVar costs one a site (docs/adr/0002).
    """

    __slots__ = ("perception",)

    def __init__(self) -> None:
        self.perception: Perception | None = None

    @contextmanager
    def bind(self, perception: Perception | None) -> Iterator[None]:
        """Make a perception visible inside the model for the length of one call."""
        previous = self.perception
        self.perception = perception
        try:
            yield
        finally:
            self.perception = previous
