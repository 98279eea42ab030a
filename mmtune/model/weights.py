"""The weights that a save writes, whole, even where several processes share them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mmtune.model.lora import without_lora
from mmtune.model.shares import shape_of, whole

if TYPE_CHECKING:
    from mmtune.model.modeling import MMTuneModel

LANGUAGE = "language_model."
METHOD = "method."
MAX_SHARD_SIZE = "5GB"


def saves_language_model(model: MMTuneModel) -> bool:
    """Whether a save writes the whole language model: when it was trained, or belongs to the folder."""
    return model.owns_language_model or any(parameter.requires_grad for parameter in model.roles()["language"])


def written_weights(model: MMTuneModel, *, keep: bool = True) -> dict[str, Tensor]:
    """What a save writes of the method, LoRA and language model, by the names of the model's ``state_dict``.

    Called by every process that has a share; tensors are empty where they are not kept. Encoders are never shared out.
    """
    prefixes = (METHOD, LANGUAGE) if saves_language_model(model) else (METHOD,)
    single = {*model.lora_names, *(f"{LANGUAGE}{name}" for name in probed_names(model))}
    state = model.state_dict(keep_vars=True)
    return {name: whole(state[name], keep=keep) for name in state if name.startswith(prefixes) or name in single}


def save_language_model(model: MMTuneModel, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the language model in the layout of transformers, each tensor once, without LoRA."""
    named = {name.removeprefix(LANGUAGE): tensor for name, tensor in weights.items() if name.startswith(LANGUAGE)}
    tensors = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in named.items()
        if f"{LANGUAGE}{name}" not in model.lora_names
    }
    with without_lora(model.language_model):
        model.language_model.save_pretrained(folder, state_dict=tensors, max_shard_size=MAX_SHARD_SIZE)


def probed_names(model: MMTuneModel) -> list[str]:
    """The input embeddings and one matrix of the last block, by which another base is recognised.

    The matrices of a quantised base are no plain numbers: the embeddings alone speak for it.
    """
    own = set(map(id, model.roles()["language"]))
    matrices = (p for p in model.host.blocks()[-1].parameters() if len(shape_of(p)) == 2 and id(p) in own)
    found = next((matrix for matrix in matrices if _is_plain(matrix)), None)
    wanted = [model.host.input_embeddings.weight, *([] if found is None else [found])]
    names = {id(parameter): name for name, parameter in model.language_model.named_parameters()}
    return [names[id(parameter)] for parameter in wanted]


def _is_plain(matrix: Tensor) -> bool:
    """Whether a weight is numbers: bitsandbytes packs bytes, torchao's tensors only look like numbers."""
    is_shared = isinstance(matrix.data, DTensor)
    return matrix.is_floating_point() and (is_shared or not is_traceable_wrapper_subclass(matrix.data))
