"""Routed bottleneck adapters: experts that share their way down and are mixed by weights on their way up.

Shapes: D width, h bottleneck, G groups, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mmtune.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class FoldedAdapter:
    """An adapter whose experts are mixed already: ``x + (x @ a + c) @ b``.

    The bottleneck is one wider than the adapter's: ``a`` is 0 and ``c`` is 1 there, so that the last row of ``b`` is
    the bias of the experts, and no sum has to be made by itself.
    """

    a: Tensor  # [B, D, h + 1]
    b: Tensor  # [B, h + 1, D]
    c: Tensor  # [1, 1, h + 1]

    def __call__(self, x: Tensor) -> Tensor:
        """Adapt ``[B * k, T, D]``; beams of a sample stand beside each other."""
        if x.shape[0] == self.a.shape[0]:  # a view costs as much as a product where a step is one token
            return torch.baddbmm(x, torch.baddbmm(self.c, x, self.a), self.b)
        rows = x.reshape(self.a.shape[0], -1, x.shape[-1])
        return torch.baddbmm(rows, torch.baddbmm(self.c, rows, self.a), self.b).reshape(x.shape)


class GroupedLinear(nn.Module):
    """A linear map whose output is cut into G equal parts, each read from its own part of the input; zero at the start.

    Args:
        in_features: Input width, a multiple of ``groups``.
        out_features: Output width, a multiple of ``groups``.
    """

    def __init__(self, in_features: int, out_features: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features // groups))
        self.bias = nn.Parameter(torch.zeros(out_features))


class RoutedAdapter(nn.Module):
    """``x + scale * sum_e w_e Up_e(Dropout(Down(x)))``, linear throughout, with one weight an expert.

    Args:
        width: D.
        bottleneck: h, a multiple of ``groups``.
        temperature: The router's scores are divided by it before their softmax.
        scale: Of everything that is added, biases included.
        dropout: On the bottleneck.

    Raises:
        UsageError: Sizes that the groups do not divide.

    Source:
        LaVIN (arXiv 2305.15023), section 3.2, as its code has it: grouped up-projections and no activation.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        *,
        temperature: float,
        scale: float = 1.0,
        dropout: float = 0.0,
        groups: int = 2,
        num_experts: int = 2,
    ) -> None:
        super().__init__()
        if bottleneck % groups or width % groups:
            raise UsageError(
                f"An adapter of width {width} with a bottleneck of {bottleneck} cannot be cut into {groups} groups.",
                where="model.settings.adapter_dim",
                fix=f"use a multiple of {groups}",
            )
        self.temperature, self.scale, self.groups = temperature, scale, groups
        self.down = nn.Linear(width, bottleneck)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(GroupedLinear(bottleneck, width, groups) for _ in range(num_experts))
        self.router = nn.Linear(width, num_experts)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def route(self, x: Tensor) -> Tensor:
        """The weights of the experts that ``x`` ``[..., D]`` asks for: ``[..., E]``, summing to 1."""
        router = self.router
        scores = nn.functional.linear(x, router.weight.to(x.dtype), router.bias.to(x.dtype))
        return (scores / self.temperature).softmax(dim=-1)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Adapt.

        Args:
            x: ``[..., T, D]``.
            weights: What :meth:`route` gave, broadcastable to ``[..., T, E]``.

        Returns:
            Shaped like ``x`` and in its dtype.
        """
        dtype = x.dtype
        inner = self.dropout(nn.functional.linear(x, self.down.weight.to(dtype), self.down.bias.to(dtype)))
        weights = weights.to(inner.dtype)
        # The experts differ after the bottleneck only, so weighting it once for each turns them into one map.
        grouped = inner.reshape(*inner.shape[:-1], self.groups, 1, -1)  # [..., T, G, 1, h/G]
        mixed = (grouped * weights[..., None, :, None]).flatten(-2)  # [..., T, G, E * h/G]
        experts = [cast(GroupedLinear, expert) for expert in self.up]
        up = torch.cat([expert.weight for expert in experts], dim=1)  # [D, E * h/G]
        up = up.reshape(self.groups, -1, up.shape[1]).to(mixed.dtype)  # [G, D/G, E * h/G]
        bias = torch.stack([expert.bias for expert in experts]).to(weights.dtype)  # [E, D]
        update = torch.einsum("...gi,goi->...go", mixed, up).flatten(-2) + weights @ bias
        return x + (self.scale * update).to(dtype)

    def fold(self, weights: Tensor, dtype: torch.dtype) -> FoldedAdapter:
        """Mix the experts once, for a decoding that meets the same weights at every step; without dropout.

        Args:
            weights: ``[B, E]``.
        """
        samples, width = weights.shape[0], self.down.in_features
        experts = torch.stack([cast(GroupedLinear, expert).weight for expert in self.up])  # [E, D, h/G]
        biases = torch.stack([cast(GroupedLinear, expert).bias for expert in self.up])  # [E, D]
        mixed = torch.einsum("be,edi->bdi", weights.to(experts.dtype), experts)  # [B, D, h/G]
        grouped = mixed.reshape(samples, self.groups, width // self.groups, -1).transpose(2, 3)  # [B, G, h/G, D/G]
        own = torch.eye(self.groups, dtype=mixed.dtype, device=mixed.device)  # a group reads its own part alone
        b = self.scale * torch.einsum("bgio,gk->bgiko", grouped, own).reshape(samples, -1, width)  # [B, h, D]
        bias = self.scale * (weights.to(biases.dtype) @ biases)  # [B, D]
        a = nn.functional.pad(self.down.weight.T, (0, 1)).expand(samples, -1, -1)
        c = nn.functional.pad(self.down.bias, (0, 1), value=1.0).reshape(1, 1, -1)
        return FoldedAdapter(a.to(dtype), torch.cat([b, bias.unsqueeze(1)], dim=1).to(dtype), c.to(dtype))
