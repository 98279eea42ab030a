"""Reads Llama 1, 2, 3 and Code Llama as Meta publishes them: any number of shards, as a part or for itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.convert.language import Language, check_language
from mmtune.convert.meta_shards import (
    MetaSizes,
    is_meta_folder,
    merge_shards,
    open_shards,
    read_params,
    read_sizes,
)
from mmtune.convert.plan import PlainPlan, Request
from mmtune.convert.reference_meta_llama import MetaLlamaReference
from mmtune.convert.tensors import Store, StoredTensor, derived
from mmtune.convert.tokenizer_files import control_ids, find_tokenizer
from mmtune.core.errors import CheckpointError

SETTINGS = ("rope_factor", "max_position_embeddings")
_NAMES: Mapping[str, str] = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_LAYER = re.compile(r"^layers\.(\d+)\.(.+)$")
_DEFAULT_THETA, _CODE_THETA, _LLAMA3_THETA = 1e4, 1e6, 5e5
_FACTOR, _SMALL_FACTOR = 8.0, 32.0
_SMALL = ((2048, 16), (3072, 28))  # width and layers of Llama 3.2 1B and 3B, stretched further than 3.1
_ORIGINAL_LENGTH = 8192


def read(folder: Path, form: str, request: Request, *, merge: bool, dtype: torch.dtype | None) -> PlainPlan:
    """Plan the conversion of a language model alone.

    Raises:
        CheckpointError: Something is missing, unknown, damaged or does not fit.
        UsageError: An unknown ``--set`` key.
    """
    request.check_settings(SETTINGS)
    language = read_meta_language(folder, request.settings)
    sizes = read_sizes(read_params(folder), folder)
    return PlainPlan(
        format="meta-llama",
        form="language",
        part=replace(language.part(dtype), folder=""),
        tokenizer=language.tokenizer,
        dtype=dtype or language.dtype,
        sources=tuple(dict.fromkeys((folder, language.tokenizer or folder))),
        reference=MetaLlamaReference(merge_shards(open_shards(folder), sizes), sizes, language.config, dtype),
    )


def read_meta_language(folder: Path, settings: Mapping[str, Any] | None = None) -> Language:
    """The language model of a folder in Meta's layout, by the names of transformers, read tensor by tensor.

    Args:
        settings: ``rope_factor`` and ``max_position_embeddings``, where ``params.json`` leaves them open.

    Raises:
        CheckpointError: A shard is missing or damaged, or tensors do not fit ``params.json``.
    """
    params = read_params(folder)
    sizes = read_sizes(params, folder)
    merged = merge_shards(open_shards(folder), sizes)
    tensors = {tensor.name: tensor for tensor in (_translate(part, sizes) for part in merged.values())}
    tokenizer = find_tokenizer(folder)
    config = _config(params, sizes, merged, folder, settings or {})
    if tokenizer is not None:
        config |= control_ids(tokenizer)
    check_language(tensors, config, folder)
    return Language(folder, config, tensors, {}, tokenizer)


def meta_or_none(folder: Path) -> Language | None:
    """:func:`read_meta_language` where the folder has that layout."""
    return read_meta_language(folder) if is_meta_folder(folder) else None


def _translate(tensor: StoredTensor, sizes: MetaSizes) -> StoredTensor:
    match = _LAYER.match(tensor.name)
    inner = (match.group(2) if match else tensor.name).removesuffix(".weight")
    name = (f"model.layers.{match.group(1)}." if match else "") + f"{_NAMES[inner]}.weight"
    heads = {"attention.wq": sizes.heads, "attention.wk": sizes.kv_heads}.get(inner)
    if heads is None:
        return StoredTensor(name, tensor.shape, tensor.dtype, tensor.file, tensor.read, composed=True)
    return derived(tensor, tensor.shape, lambda: half_split(tensor.read(), heads), name)


def half_split(weight: Tensor, heads: int) -> Tensor:
    """From rotary pairs that lie beside each other to those that lie half a head apart."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def _config(
    params: Mapping[str, Any], sizes: MetaSizes, merged: Store, folder: Path, settings: Mapping[str, Any]
) -> dict[str, Any]:
    for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"):
        if name not in merged:
            raise CheckpointError(f"Tensor '{name}' is missing.", where=str(folder), fix="copy the whole checkpoint")
    theta = params.get("rope_theta") or _DEFAULT_THETA
    if not isinstance(theta, int | float) or not 0 < theta < math.inf:
        raise CheckpointError(
            f"rope_theta is {theta!r}, no number above 0.", where=str(folder / "params.json"), fix="copy the file again"
        )
    vocabulary = merged["tok_embeddings.weight"].shape[0]
    stated = params.get("vocab_size", -1)
    if isinstance(stated, int) and stated > 0 and stated != vocabulary:
        raise CheckpointError(
            f"params.json says vocab_size {stated}, tensor 'tok_embeddings.weight' has {vocabulary} rows.",
            where=str(folder / "params.json"),
            fix="use the params.json that belongs to these weights",
        )
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": sizes.width,
        "intermediate_size": merged["layers.0.feed_forward.w1.weight"].shape[0],
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_width,
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_theta": float(theta),
        "rope_scaling": _scaling(params, sizes, settings),
        "max_position_embeddings": _max_positions(params, sizes, theta, settings),
        "vocab_size": vocabulary,
        "tie_word_embeddings": "output.weight" not in merged,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _scaling(params: Mapping[str, Any], sizes: MetaSizes, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stretched frequencies of Llama 3.1 and later; the factor itself is not in Meta's files."""
    if not params.get("use_scaled_rope"):
        return None
    default = _SMALL_FACTOR if (sizes.width, sizes.layers) in _SMALL else _FACTOR
    return {
        "rope_type": "llama3",
        "factor": float(settings.get("rope_factor") or params.get("rope_scaling_factor") or default),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": _ORIGINAL_LENGTH,
    }


def _max_positions(params: Mapping[str, Any], sizes: MetaSizes, theta: float, settings: Mapping[str, Any]) -> int:
    """The lengths that Meta states for its models; their files do not hold them."""
    given = settings.get("max_position_embeddings")
    if given is not None:
        return int(given)
    if params.get("use_scaled_rope"):
        return 131072
    if theta in (_CODE_THETA, _LLAMA3_THETA):
        return 16384 if theta == _CODE_THETA else 8192
    first = params.get("norm_eps") == 1e-6 or (sizes.width in (6656, 8192) and params.get("n_kv_heads") is None)
    return 2048 if first else 4096
