"""The families under test, and a reference that knows nothing of hosts: weights merged one sample at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmtune.core.perception import LowRank, Perception
from mmtune.hosts.host import Host, Site
from tests.tiny import VOCAB_SIZE, tiny_lm

_PLAIN = (
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "granite", "cohere", "cohere2"),
    ("olmo", "olmo2", "olmo3", "starcoder2", "stablelm", "apertus", "phi", "phi3", "persimmon", "gpt_neox", "gpt2"),
    ("gpt_bigcode", "gptj", "gpt_neo", "codegen", "opt", "xglm", "biogpt", "bloom", "falcon", "mpt"),
    ("glm", "glm4", "helium"),  # not in the tables: they follow llama's paths
)
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for row in _PLAIN for name in row},
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True}),
    "gpt_neox-serial": ("gpt_neox", {"use_parallel_residual": False}),
    "opt-postnorm": ("opt", {"do_layer_norm_before": False}),
    "opt-narrow-embedding": ("opt", {"word_embed_proj_dim": 16}),
    "falcon-heads": ("falcon", {"multi_query": False}),
    "falcon-groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("falcon", {"alibi": True, "parallel_attn": False, "multi_query": False}),
    "gpt_bigcode-heads": ("gpt_bigcode", {"multi_query": False}),
    "phi3-all-heads": ("phi3", {"num_key_value_heads": 4}),
}
REQUIRED = ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "gpt_neox", "opt", "gpt2", "falcon", "bloom", "mpt"]

# One of each layout always; the rest of the slower tests only with `-m slow`.
SOME_FIRST = [
    *REQUIRED,
    *(
        pytest.param(variant, marks=() if variant in ("falcon-groups", "opt-postnorm") else pytest.mark.slow)
        for variant in VARIANTS
        if variant not in REQUIRED
    ),
]

_HEADS, _SIZE = 4, 8


def make(variant: str, **overrides: object) -> PreTrainedModel:
    family, settings = VARIANTS[variant]
    return tiny_lm(family, **{**settings, **overrides})


def prompts(batch: int = 2, length: int = 7, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCAB_SIZE, (batch, length), generator=generator)


def all_sites(host: Host, kinds: str = "qkvom") -> list[Site]:
    return [host.site(layer, kind) for layer in range(host.num_layers) for kind in kinds]


def random_deltas(
    sites: Sequence[Site], batch: int = 2, rank: int = 3, scale: float = 0.2, seed: int = 2
) -> Perception:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    return Perception(
        deltas={
            site.name: LowRank(
                draw(batch, site.in_features, rank), draw(1 if i % 2 else batch, rank, site.out_features)
            )
            for i, site in enumerate(sites)
        }
    )


def take(perception: Perception, rows: Sequence[int]) -> Perception:
    """The perception of some samples."""
    index = list(rows)
    return Perception(
        deltas={
            name: LowRank(delta.a[index], delta.b if len(delta.b) == 1 else delta.b[index])
            for name, delta in perception.deltas.items()
        }
    )


def merged(model: PreTrainedModel, perception: Perception, sample: int) -> PreTrainedModel:
    """A copy of the model whose own weights hold one sample's deltas."""
    twin = copy.deepcopy(model)
    blocks = next(module for module in twin.modules() if isinstance(module, nn.ModuleList) and len(module) == 2)
    for name, delta in take(perception, [sample]).deltas.items():
        _, layer, kind = name.split(".")
        change = delta.a[0] @ delta.b[0]  # [in, out]
        if kind == "m":
            _merge_mlp(blocks[int(layer)], delta)
        else:
            _merge_projection(blocks[int(layer)], kind, change, model.config)
    return twin


def _merge_projection(block: nn.Module, kind: str, change: Tensor, config: object) -> None:
    names = {"q": ["q_proj"], "k": ["k_proj"], "v": ["v_proj"], "o": ["o_proj", "out_proj", "dense"]}[kind]
    attention = next(
        getattr(block, name) for name in ("self_attn", "attention", "attn", "self_attention") if hasattr(block, name)
    )
    attention = getattr(attention, "attention", attention)  # gpt_neo nests one more
    if kind == "o" and hasattr(attention, "c_attn"):
        names = ["c_proj"]
    for name in names:
        if hasattr(attention, name):
            _add(getattr(attention, name), change, slice(None))
            return
    fused = next(name for name in ("qkv_proj", "query_key_value", "c_attn", "Wqkv") if hasattr(attention, name))
    module = getattr(attention, fused)
    _add(module, change, _columns(attention, module, "qkv".index(kind), config))


def _columns(attention: nn.Module, module: nn.Module, part: int, config: object) -> Tensor:
    """Which columns of a fused projection are q, k or v: the model's own splitting, done to the column numbers."""
    total = module.nf if hasattr(module, "nf") else module.out_features
    numbers = torch.arange(total).view(1, 1, total)
    family = config.model_type  # type: ignore[attr-defined]
    if family in ("falcon", "persimmon"):
        split = attention._split_heads(numbers)[part]
        if family == "falcon" and attention.new_decoder_architecture and part:
            split = split[:, :, :: attention.num_heads // attention.num_kv_heads]  # undo the broadcast to query heads
        return split.reshape(-1)
    if family == "bloom":
        return attention._reshape(numbers)[part].transpose(1, 2).reshape(-1)
    if family == "gpt_neox" or (family == "gpt_bigcode" and not config.multi_query):  # type: ignore[attr-defined]
        return numbers.view(_HEADS, 3 * _SIZE)[:, part * _SIZE : (part + 1) * _SIZE].reshape(-1)
    if family == "codegen":  # four cores, each q, v, k
        width = _HEADS * _SIZE // 4
        at = (0, 2, 1)[part]
        return numbers.view(4, 3 * width)[:, at * width : (at + 1) * width].reshape(-1)
    query = _HEADS * _SIZE
    return numbers.view(-1).split([query, (total - query) // 2, (total - query) // 2])[part]


@torch.no_grad()
def _add(module: nn.Module, change: Tensor, columns: Tensor | slice) -> None:
    if hasattr(module, "nf"):  # Conv1D stores [in, out]
        module.weight[:, columns] += change
    else:
        module.weight[columns] += change.T


def _merge_mlp(block: nn.Module, delta: LowRank) -> None:
    if hasattr(block, "fc1"):
        _widen(block, delta)
        return
    mlp = next(getattr(block, name) for name in ("mlp", "ffn") if hasattr(block, name))
    original = mlp.forward

    def forward(x: Tensor, *rest: Tensor) -> Tensor:
        return original(x, *rest) + x @ delta.a[0] @ delta.b[0]

    mlp.forward = forward


@torch.no_grad()
def _widen(block: nn.Module, delta: LowRank) -> None:
    """Write a linear map into a two-layer MLP: relu(z) - relu(-z) = z, and the same holds for gelu."""
    a, b = delta.a[0], delta.b[0]
    first, last = block.fc1, block.fc2
    first.weight = nn.Parameter(torch.cat([first.weight, a.T, -a.T]))
    first.bias = nn.Parameter(torch.cat([first.bias, torch.zeros(2 * len(b))]))
    last.weight = nn.Parameter(torch.cat([last.weight, b.T, -b.T], dim=1))
