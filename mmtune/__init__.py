"""mmtune: parameter-efficient multimodal tuning of any Hugging Face language model.

``mmtune.load(folder)`` gives a model and its processor; ``mmtune.build_model(...)`` a fresh one. Names are imported
when they are first used, so that ``import mmtune`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mmtune.registration import register_with_transformers

__version__ = "0.1.0"

_PUBLIC = {
    "load": "mmtune.model.build:load",
    "build_model": "mmtune.model.build:build_model",
    "MMTuneModel": "mmtune.model.modeling:MMTuneModel",
    "MMTuneConfig": "mmtune.model.configuration:MMTuneConfig",
    "MMTuneProcessor": "mmtune.model.processing:MMTuneProcessor",
    "Method": "mmtune.methods.base:Method",
    "Modality": "mmtune.modalities.base:Modality",
    "Features": "mmtune.core.perception:Features",
    "LowRank": "mmtune.core.perception:LowRank",
    "Perception": "mmtune.core.perception:Perception",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmtune' has no attribute '{name}'")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_transformers()
