"""Meta's Llama evaluated straight from its own tensors: rotary pairs side by side, nothing permuted.

Shapes: T ids, H heads, K key and value heads, d head width, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmtune.convert.meta_shards import MetaSizes
from mmtune.convert.plan import Picture
from mmtune.convert.reference import num_parameters
from mmtune.convert.tensors import Store


class MetaLlamaReference:
    """The published forward pass in float32, one sequence at a time."""

    def __init__(self, tensors: Store, sizes: MetaSizes, config: Mapping[str, Any], dtype: torch.dtype | None) -> None:
        self.tensors, self.sizes, self.config, self.dtype = tensors, sizes, config, dtype
        self.num_parameters = num_parameters(tensors)

    def load(self) -> None:
        """Bring the source's weights into memory, in float32."""
        self.weights = {name: tensor.rounded(self.dtype) for name, tensor in self.tensors.items()}

    def release(self) -> None:
        """Let go of them again."""
        del self.weights

    @torch.no_grad()
    def logits(self, ids: Tensor, picture: Picture | None, *, adapter: bool = True) -> tuple[Tensor, Tensor]:
        """Evaluate one sequence; see :class:`mmtune.convert.plan.Reference`."""
        weights = self.weights
        hidden = weights["tok_embeddings.weight"][ids]  # [T, D]
        turns = self._turns(len(ids))  # [T, d / 2]
        for layer in range(self.sizes.layers):
            hidden = self._block(hidden, turns, f"layers.{layer}.")
        head = weights.get("output.weight", weights["tok_embeddings.weight"])
        return self._norm(hidden, "norm.weight") @ head.T, torch.ones(len(ids), dtype=torch.bool)

    def _block(self, hidden: Tensor, turns: Tensor, prefix: str) -> Tensor:
        weights, sizes = self.weights, self.sizes
        seen = self._norm(hidden, f"{prefix}attention_norm.weight")
        query, key, value = (
            (seen @ weights[f"{prefix}attention.w{kind}.weight"].T).view(len(seen), heads, sizes.head_width)
            for kind, heads in (("q", sizes.heads), ("k", sizes.kv_heads), ("v", sizes.kv_heads))
        )
        query, key = _rotate(query, turns), _rotate(key, turns)
        shared = sizes.heads // sizes.kv_heads
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)  # [T, H, d]
        scores = torch.einsum("thd,shd->hts", query, key) / math.sqrt(sizes.head_width)
        later = torch.ones(len(seen), len(seen), dtype=torch.bool).triu(1)
        shares = scores.masked_fill(later, -math.inf).softmax(-1)
        attended = torch.einsum("hts,shd->thd", shares, value).flatten(1)
        hidden = hidden + attended @ weights[f"{prefix}attention.wo.weight"].T
        seen = self._norm(hidden, f"{prefix}ffn_norm.weight")
        gate, up, down = (weights[f"{prefix}feed_forward.w{number}.weight"] for number in (1, 3, 2))
        return hidden + (functional.silu(seen @ gate.T) * (seen @ up.T)) @ down.T

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        mean_square = hidden.pow(2).mean(-1, keepdim=True)
        return hidden * torch.rsqrt(mean_square + float(self.config["rms_norm_eps"])) * self.weights[name]

    def _turns(self, length: int) -> Tensor:
        """Each position's rotations as complex numbers of length 1."""
        width = self.sizes.head_width
        speeds = float(self.config["rope_theta"]) ** (-torch.arange(0, width, 2).float() / width)
        scaling = self.config.get("rope_scaling")
        if scaling:
            speeds = _stretch(speeds, scaling)
        angles = torch.outer(torch.arange(length).float(), speeds)
        return torch.polar(torch.ones_like(angles), angles)


def _rotate(states: Tensor, turns: Tensor) -> Tensor:
    """Turn neighbouring pairs ``[T, heads, d]`` as complex numbers."""
    pairs = torch.view_as_complex(states.reshape(*states.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns.unsqueeze(1)).flatten(-2)


def _stretch(speeds: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Llama 3.1: slow rotations are slowed by the factor, fast ones kept, those between blended."""
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    rounds = float(scaling["original_max_position_embeddings"]) * speeds / (2 * math.pi)
    share = ((rounds - low) / (high - low)).clamp(0, 1)
    return speeds * (share + (1 - share) / float(scaling["factor"]))
