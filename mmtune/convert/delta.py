"""LLaVA's v0 and v1.1 releases: differences from a language model, to which it has to be added."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mmtune.convert.language import Language
from mmtune.convert.tensors import StoredTensor, derived
from mmtune.core.errors import CheckpointError

_NORM = "model.norm.weight"  # about as large in every training of a model, next to nothing in a difference
_SMALL, _TINY = 0.5, 0.05
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")  # may have rows for new tokens


def is_delta(language: Language, base: Language) -> bool:
    """Whether weights are a difference from the base and no weights of their own.

    The final norm tells: trained weights keep its size, a difference has next to nothing of it.
    """
    if _NORM not in language.tensors or _NORM not in base.tensors:
        return False
    own, other = (float(model.tensors[_NORM].read().float().abs().mean()) for model in (language, base))
    return own < _SMALL * other


def looks_like_delta(language: Language) -> bool:
    """Whether the final norm is so small that the weights are hardly a model's own."""
    norm = language.tensors.get(_NORM)
    return norm is not None and float(norm.read().float().abs().mean()) < _TINY


def add_delta(language: Language, base: Language) -> Language:
    """The language model that base and difference make, in the precision of the difference.

    Raises:
        CheckpointError: The base lacks a tensor, or has another shape.
    """
    tensors = {}
    for name, tensor in language.tensors.items():
        if name not in base.tensors:
            raise CheckpointError(
                f"The base has no tensor '{name}', which the delta changes.",
                where=str(base.folder),
                fix="give the base that the delta was made with: --llm",
            )
        tensors[name] = _sum(tensor, base.tensors[name])
    return replace(language, tensors=tensors)


def _sum(delta: StoredTensor, base: StoredTensor) -> StoredTensor:
    grown = delta.name in _TABLES and len(base.shape) == 2
    fits = delta.shape == base.shape
    if grown and not fits:
        fits = delta.shape[1] == base.shape[1] and delta.shape[0] >= base.shape[0]
    if not fits:
        raise CheckpointError(
            f"Tensor '{delta.name}' has shape {list(delta.shape)}, the base's has {list(base.shape)}.",
            where=str(base.file),
            fix="give the base that the delta was made with: --llm",
        )

    def load() -> Tensor:
        total = delta.read().clone()
        rows = base.read().to(total.dtype)
        total[: len(rows)] += rows
        return total

    return derived(delta, delta.shape, load)
