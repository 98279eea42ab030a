"""Packing: whether rows may stand one behind the other in one long row."""

from __future__ import annotations

import torch

from mmtune.core.errors import NotPossibleError
from mmtune.methods import METHODS
from mmtune.model.modeling import MMTuneModel
from mmtune.train.recipe import Recipe

_LENGTHS = (5, 7, 4)
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # of hidden scores whose size is about 1


def refuse_method(recipe: Recipe) -> None:
    """Say no to packing for methods that act on whole rows.

    Raises:
        NotPossibleError: With the reason.
    """
    reason = METHODS.load(recipe.method).no_packing
    if recipe.train.packing and reason is not None:
        raise NotPossibleError(
            f"Packing is not possible with {recipe.method}: {reason}.",
            where=recipe.where("train.packing"),
            fix="--set train.packing=false --set train.grouping=length",
        )


def check_language_model(recipe: Recipe, model: MMTuneModel) -> None:
    """Prove on three short texts that this language model keeps packed rows apart.

    Raises:
        NotPossibleError: Its answers depend on the texts before.
    """
    if not recipe.train.packing:
        return
    training = model.training
    texts = [torch.arange(length, device=model.device) % model.host.vocab_size for length in _LENGTHS]
    positions = [torch.arange(length, device=model.device) for length in _LENGTHS]
    model.eval()
    with torch.no_grad():
        alone = torch.cat([model(text.unsqueeze(0), use_cache=False).logits[0] for text in texts])
        together = model(
            torch.cat(texts).unsqueeze(0), position_ids=torch.cat(positions).unsqueeze(0), use_cache=False
        ).logits[0]
    model.train(training)
    if not model._takes_positions or _differ(together, alone):
        raise NotPossibleError(
            f"Packing is not possible with a '{model.host.kind}' language model: it lets packed rows see each other.",
            where=recipe.where("train.packing"),
            fix="--set train.packing=false --set train.grouping=length",
        )


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    scale = float(other.float().abs().max().clamp(min=1.0))
    return float((one.float() - other.float()).abs().max()) > scale * _TOLERANCE.get(one.dtype, 1e-3)
