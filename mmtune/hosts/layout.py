"""Where the parts of a transformer live: module paths by model type, never class names.

A layout is data. A new family is one entry of ``LAYOUTS``; families that follow llama's paths need none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """A site that is no single module: its input enters ``first``, its update is added to what leaves ``last``."""

    first: str
    last: str


@dataclass(frozen=True, slots=True)
class Widths:
    """Columns of a fused projection: ``groups`` times the parts ``(name, width)`` in the order they are stored."""

    groups: int
    parts: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Fused:
    """One part of a projection that holds several."""

    path: str
    part: str
    widths: Callable[[Any], Widths]


@dataclass(frozen=True, slots=True)
class Absent:
    """A site that a family does not have, and why."""

    reason: str


Place = str | Span | Fused | Absent


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one family; all but ``blocks`` are relative to a block."""

    blocks: str
    sites: Mapping[str, Place]
    roots: tuple[str, ...] = ("model", "", "model.language_model", "language_model")
    position_limit: str | None = "max_position_embeddings"
    refuse: Callable[[Any], str | None] | None = None

    def at(self, **places: Place) -> Layout:
        """The same layout with some sites elsewhere."""
        return replace(self, sites={**self.sites, **places})


def _attention(module: str, output: str, q: str = "q_proj", k: str = "k_proj", v: str = "v_proj") -> dict[str, Place]:
    return {"q": f"{module}.{q}", "k": f"{module}.{k}", "v": f"{module}.{v}", "o": f"{module}.{output}"}


def _fused(path: str, widths: Callable[[Any], Widths]) -> dict[str, Place]:
    return {part: Fused(path, part, widths) for part in ("q", "k", "v")}


def _head_dim(config: Any) -> int:
    given = getattr(config, "head_dim", None)
    return int(given) if given else int(config.hidden_size) // int(config.num_attention_heads)


def _one_after_another(config: Any) -> Widths:
    """``[all q | all k | all v]``."""
    size = _head_dim(config)
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    q, kv = config.num_attention_heads * size, kv_heads * size
    return Widths(1, (("q", q), ("k", kv), ("v", kv)))


def _head_by_head(config: Any) -> Widths:
    """``[q k v]`` of head 0, then of head 1, and so on."""
    size = _head_dim(config)
    return Widths(config.num_attention_heads, (("q", size), ("k", size), ("v", size)))


def _falcon(config: Any) -> Widths:
    """All query heads of a key head, then that key and its value; the older multi-query form has one such group."""
    size, heads = _head_dim(config), config.num_attention_heads
    groups = config.num_kv_heads if config.new_decoder_architecture else (1 if config.multi_query else heads)
    return Widths(groups, (("q", heads // groups * size), ("k", size), ("v", size)))


def _gpt_bigcode(config: Any) -> Widths:
    size, heads = _head_dim(config), config.num_attention_heads
    if not config.multi_query:
        return _head_by_head(config)
    return Widths(1, (("q", heads * size), ("k", size), ("v", size)))


def _codegen(config: Any) -> Widths:
    """Four groups, a leftover of the four TPU cores it was trained on, in the order q, v, k."""
    width = _head_dim(config) * config.num_attention_heads // 4
    return Widths(4, (("q", width), ("v", width), ("k", width)))


def _sliced_weights(config: Any) -> str | None:
    if config.slow_but_exact and config.pretraining_tp > 1:
        return "slow_but_exact slices the weights instead of calling the modules, so nothing put onto them would act"
    return None


_NO_NORM = Absent("it normalises after attention, nothing is normalised before it")

LLAMA = Layout("layers", {**_attention("self_attn", "o_proj"), "m": "mlp", "attention_norm": "input_layernorm"})
_NEOX = Layout(
    "layers",
    {
        **_fused("attention.query_key_value", _head_by_head),
        "o": "attention.dense",
        "m": "mlp",
        "attention_norm": "input_layernorm",
    },
    roots=("gpt_neox", ""),
)
_GPT2 = Layout(
    "h",
    {**_fused("attn.c_attn", _one_after_another), "o": "attn.c_proj", "m": "mlp", "attention_norm": "ln_1"},
    roots=("transformer", ""),
)
_OPT = Layout(
    "layers",
    {
        **_attention("self_attn", "out_proj"),
        "m": Span("fc1", "fc2"),
        "attention_norm": "self_attn_layer_norm",
    },
    roots=("model.decoder", "decoder", "model", "biogpt", ""),
)
_CLIP = Layout(
    "encoder.layers",
    {**_attention("self_attn", "out_proj"), "m": "mlp", "attention_norm": "layer_norm1"},
    roots=("", "vision_model", "vision_model.vision_model"),
    position_limit=None,
)
_DINO = Layout(
    "encoder.layer",
    {**_attention("attention", "o_proj"), "m": "mlp", "attention_norm": "norm1"},
    roots=("", "dinov2"),
    position_limit=None,
)
# Residual and dropout live inside these MLP modules, so their own first and last linear maps bound the site.
_BLOOM = replace(
    _NEOX.at(
        **_fused("self_attention.query_key_value", _head_by_head),
        o="self_attention.dense",
        m=Span("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    blocks="h",
    roots=("transformer", ""),
    position_limit=None,
    refuse=_sliced_weights,
)
_MPT = Layout(
    "blocks",
    {
        **_fused("attn.Wqkv", _one_after_another),
        "o": "attn.out_proj",
        "m": Span("ffn.up_proj", "ffn.down_proj"),
        "attention_norm": "norm_1",
    },
    roots=("transformer", ""),
    position_limit="max_seq_len",
)
_FALCON = replace(
    _BLOOM.at(**_fused("self_attention.query_key_value", _falcon), m="mlp"),
    position_limit="max_position_embeddings",
    refuse=None,
)
_GPT_OSS_EXPERTS = Absent("its experts are bare parameters behind a router that returns its scores with their output")

LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(
        ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "granite", "cohere"], LLAMA
    ),
    **dict.fromkeys(["cohere2", "starcoder2", "stablelm", "olmo"], LLAMA),
    **dict.fromkeys(("olmo2", "olmo3"), LLAMA.at(attention_norm=_NO_NORM)),
    "apertus": LLAMA.at(attention_norm="attention_layernorm"),
    "phi": LLAMA.at(o="self_attn.dense"),
    "phi3": LLAMA.at(**_fused("self_attn.qkv_proj", _one_after_another)),
    "persimmon": LLAMA.at(**_fused("self_attn.query_key_value", _head_by_head), o="self_attn.dense"),
    "gpt_oss": LLAMA.at(m=_GPT_OSS_EXPERTS),
    "gpt_neox": _NEOX,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2.at(**_fused("attn.c_attn", _gpt_bigcode)),
    "gptj": _GPT2.at(**_attention("attn", "out_proj")),
    "gpt_neo": _GPT2.at(**_attention("attn.attention", "out_proj")),
    "codegen": _GPT2.at(**_fused("attn.qkv_proj", _codegen), o="attn.out_proj"),
    **dict.fromkeys(("opt", "xglm", "biogpt"), _OPT),
    "bloom": _BLOOM,
    "falcon": _FALCON,
    "mpt": _MPT,
    **dict.fromkeys(("clip_vision_model", "siglip_vision_model"), _CLIP),
    "dinov2": _DINO,
}
