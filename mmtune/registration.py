"""Makes transformers' Auto classes know mmtune without importing transformers, or torch, before somebody else does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

# A module of transformers -> the module of mmtune that registers itself there when it is imported.
_COMPANIONS = {
    "transformers.models.auto.configuration_auto": "mmtune.model.configuration",
    "transformers.models.auto.modeling_auto": "mmtune.model.modeling",
    "transformers.models.auto.processing_auto": "mmtune.model.processing",
}


class _Companion(Loader):
    """Loads a module as its own loader does, then its companion."""

    def __init__(self, loader: Loader, companion: str) -> None:
        self._loader = loader
        self._companion = companion

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        import_module(self._companion)


class _Finder(MetaPathFinder):
    """Wraps the loader of each of transformers' Auto modules once."""

    def __init__(self) -> None:
        self._pending = dict(_COMPANIONS)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        companion = self._pending.pop(fullname, None)
        if companion is None:
            return None
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Companion(spec.loader, companion)
        return spec


def register_with_transformers() -> None:
    """Register now where transformers is loaded already, and on its first use where it is not."""
    for module, companion in _COMPANIONS.items():
        if module in sys.modules:
            import_module(companion)
    sys.meta_path.insert(0, _Finder())
