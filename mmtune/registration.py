"""Makes transformers' Auto classes know mmtune without importing transformers, or torch, before somebody else does.

A stand-in is registered as the configuration class of ``mmtune``. The first ``from_pretrained`` of a checkpoint asks
it for a configuration; only then, with every module of transformers long loaded, the real classes are imported and
register themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto.configuration_auto"


class DeferredConfig:
    """Stands in for ``MMTuneConfig`` until a checkpoint is opened."""

    model_type = "mmtune"

    @classmethod
    def from_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """Import the real classes, which replace this one, and make the real configuration."""
        for module in ("mmtune.model.modeling", "mmtune.model.processing"):
            import_module(module)
        return import_module("mmtune.model.configuration").MMTuneConfig.from_dict(*args, **kwargs)


class _Loader(Loader):
    """Loads a module as its own loader does, then registers the stand-in."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(module)


class _Finder(MetaPathFinder):
    """Wraps the loader of transformers' table of configurations, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def _register(module: ModuleType) -> None:
    module.AutoConfig.register(DeferredConfig.model_type, DeferredConfig, exist_ok=True)


def register_with_transformers() -> None:
    """Register now where transformers is loaded already, and when it is loaded where it is not."""
    if _AUTO in sys.modules:
        _register(sys.modules[_AUTO])
    else:
        sys.meta_path.insert(0, _Finder())
