"""The Vicuna that LaVIN's Vicuna adapters were trained on, fault included.

The published code adds Vicuna's delta, whose queries and keys are in Hugging Face's order, to LLaMA's weights in Meta's
order. An adapter trained so needs that same sum; a true Vicuna is another model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from mmtune.convert.language import Language, read_language
from mmtune.convert.lavin_source import AdapterFile
from mmtune.convert.locate import candidates, locate
from mmtune.convert.meta_llama import half_split
from mmtune.convert.tensors import StoredTensor, derived, require_shape
from mmtune.core.errors import CheckpointError

_ROTATED = (".q_proj.weight", ".k_proj.weight")


def with_vicuna(
    language: Language, adapter: AdapterFile, legacy: bool | None, delta: str | None
) -> tuple[Language, tuple[str, ...]]:
    """Add Vicuna's delta to LLaMA, where one is asked for.

    Args:
        legacy: True adds it as the published code does; False as it is meant. None adds it only where ``delta`` is
            given, as it is meant.
        delta: Its folder; ``vicuna_<size>`` beside LLaMA by default.

    Returns:
        The language model, and notes for the user.

    Raises:
        CheckpointError: No delta, or one of other shapes.
    """
    if legacy is None and delta is None:
        if not adapter.arguments.get("use_vicuna"):
            return language, ()
        note = (
            "The adapter was trained on LLaMA plus Vicuna's delta with unpermuted queries and keys; "
            "--set lavin.vicuna_legacy_delta=true rebuilds that base. Nothing was added to the one given."
        )
        return language, (note,)
    found = read_language(_find(language, adapter, delta))
    tensors = {
        name: _sum(tensor, _of(found, tensor), int(language.config["num_attention_heads"]), legacy=bool(legacy))
        for name, tensor in language.tensors.items()
    }
    return replace(language, tensors=tensors), (f"Vicuna's delta was added: {found.folder}.",)


def _find(language: Language, adapter: AdapterFile, delta: str | None) -> Path:
    if delta is not None:
        option = "--set lavin.vicuna_delta"
        return locate(delta, beside=adapter.path.parent, what="delta of Vicuna", option=option).folder
    name = f"vicuna_{adapter.arguments.get('llm_model') or language.folder.name}"
    tried = [
        language.folder.parent / name,
        language.folder.parent.parent / name,
        *candidates(f"../data/weights/{name}", adapter.path.parent),
    ]
    for folder in tried:
        if (folder / "config.json").is_file():
            return folder
    raise CheckpointError(
        f"Vicuna's delta was not found. Looked for: {', '.join(map(str, tried[:3]))}.",
        where=str(adapter.path),
        fix="give its folder with --set lavin.vicuna_delta=FOLDER",
    )


def _of(delta: Language, tensor: StoredTensor) -> StoredTensor:
    if tensor.name not in delta.tensors:
        raise CheckpointError(
            f"Tensor '{tensor.name}' is missing in the delta.", where=str(delta.folder), fix="copy it again"
        )
    require_shape(delta.tensors[tensor.name], tensor.shape, because="LLaMA")
    return delta.tensors[tensor.name]


def _sum(tensor: StoredTensor, delta: StoredTensor, heads: int, *, legacy: bool) -> StoredTensor:
    """LLaMA's tensor in Hugging Face's order plus the delta's; reordering rows and adding commute."""
    misplaced = legacy and tensor.name.endswith(_ROTATED)

    def load() -> Tensor:
        change = delta.read().to(tensor.dtype)
        return tensor.read() + (half_split(change, heads) if misplaced else change)

    return derived(tensor, tensor.shape, load)
