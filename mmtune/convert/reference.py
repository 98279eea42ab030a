"""Plain transformers models straight from the source's tensors, to compare a converted model with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

from mmtune.convert.language import Language
from mmtune.convert.tensors import Store, num_elements
from mmtune.convert.vision import Tower
from mmtune.core.errors import CheckpointError

if TYPE_CHECKING:
    from mmtune.convert.lora import Lora


def num_parameters(*stores: Store) -> int:
    """Values in all of these tensors."""
    return sum(num_elements(tensor.shape) for store in stores for tensor in store.values())


def load_language(
    language: Language, dtype: torch.dtype | None, lora: Lora | None = None, *, merge: bool = False
) -> nn.Module:
    """The source's language model in float32 with eager attention, a LoRA added to its weights.

    Args:
        dtype: Round the values to the precision that they are written in.
        merge: The sum of weight and LoRA is what is written, so that the sum is rounded.
    """
    with init_empty_weights(include_buffers=False):
        made = AutoConfig.for_model(**language.config)
        model = AutoModelForCausalLM.from_config(made, attn_implementation="eager", dtype=torch.float32)
    weights = {name: tensor.rounded(dtype) for name, tensor in language.tensors.items()}
    for module in lora.pairs if lora is not None else ():
        name = f"{module}.weight"
        if merge:
            total = language.tensors[name].read().float() + lora.update(module)  # type: ignore[union-attr]
            weights[name] = total.to(dtype or language.tensors[name].dtype).float()
        else:
            weights[name] = weights[name] + lora.update(module, dtype)  # type: ignore[union-attr]
    return _fill(model, weights, where=str(language.folder))


def load_tower(tower: Tower, dtype: torch.dtype | None) -> nn.Module:
    """The source's vision tower in float32, its values rounded to ``dtype`` when it is written again."""
    with init_empty_weights(include_buffers=False):
        model = CLIPVisionModel._from_config(CLIPVisionConfig(**tower.config), attn_implementation="eager")
    where = str(tower.place.folder) if tower.place is not None else "inside the checkpoint"
    kept = dtype if tower.is_copied else None
    return _fill(model, {name: tensor.rounded(kept) for name, tensor in tower.tensors.items()}, where=where)


def _fill(model: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> nn.Module:
    missing, unexpected = model.load_state_dict(dict(weights), strict=False, assign=True)
    model.tie_weights()  # type: ignore[operator]
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if unexpected or empty:
        raise CheckpointError(
            f"The source does not fill its own model: {[*unexpected, *empty, *missing][:4]}.", where=where
        )
    return model.eval()


def features(tower: nn.Module, pixels: Tensor, *, layer: int, select: str) -> Tensor:
    """One hidden layer of the tower, with or without the class token: ``[N, P, D]``."""
    with torch.no_grad():
        hidden: Tensor = tower(pixels.float(), output_hidden_states=True).hidden_states[layer]
    return hidden[:, 1:] if select == "patch" else hidden
