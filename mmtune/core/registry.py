"""Names to classes: built-in ones by import path, third parties' by entry point, loaded only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from mmtune.core.errors import unknown_name


def canonical(name: str) -> str:
    """The one spelling of a registered name: ``multi-token`` and ``multi_token`` are the same."""
    return name.strip().lower().replace("-", "_")


class Registry:
    """A table of names whose values are imported on first use.

    Args:
        kind: What the names stand for, used in messages ("method").
        group: Entry-point group that adds names from other packages, for example ``mmtune.methods``.
        builtin: Name to ``"module:attribute"``.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._paths = {canonical(name): path for name, path in builtin.items()}
        self._loaded: dict[str, Any] = {}

    def names(self) -> list[str]:
        """All names, sorted, without importing anything they stand for."""
        plugins = {canonical(point.name) for point in entry_points(group=self.group)}
        return sorted(plugins | set(self._paths) | set(self._loaded))

    def register(self, name: str, value: Any) -> None:
        """Add a value in this process only, as tests and notebooks do."""
        self._loaded[canonical(name)] = value

    def load(self, name: str, *, where: str | None = None) -> Any:
        """The value behind a name.

        Args:
            where: The option or key that the name was given by, for the error.

        Raises:
            UsageError: No such name; the message lists the names and suggests the nearest.
        """
        key = canonical(name)
        if key not in self._loaded:
            self._loaded[key] = self._import(key, name, where)
        return self._loaded[key]

    def _import(self, key: str, given: str, where: str | None) -> Any:
        if key in self._paths:
            module, _, attribute = self._paths[key].partition(":")
            return getattr(import_module(module), attribute)
        for point in entry_points(group=self.group):
            if canonical(point.name) == key:
                return point.load()
        raise unknown_name(self.kind, given, self.names(), where=where)
