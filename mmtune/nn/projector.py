"""Maps from encoder width to the hidden size of a language model."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from mmtune.core.errors import UsageError

_MLP = re.compile(r"^mlp([1-9]\d{0,2})x_gelu$")


class Projector(nn.Module):
    """``linear``, ``mlpNx_gelu`` or ``identity``, applied to every position alone.

    Args:
        kind: ``linear`` is one layer with bias; ``mlpNx_gelu`` is a layer followed by N-1 times (exact GELU, layer);
            ``identity`` passes features through.
        in_features: Width D of the encoder.
        out_features: Hidden size H of the language model.

    Raises:
        UsageError: An unknown kind, or ``identity`` between unequal widths.

    Source:
        LLaVA (arXiv 2304.08485, section 4.1) and LLaVA-1.5 (arXiv 2310.03744, section 3.2).
    """

    def __init__(self, kind: str, in_features: int, out_features: int) -> None:
        super().__init__()
        self.kind = kind
        self.layers = nn.Sequential(*_layers(kind, in_features, out_features))

    def num_tokens(self, positions: int) -> int:
        """Tokens made of one item with so many positions: one each."""
        return positions

    def forward(self, features: Tensor) -> Tensor:
        """Project ``[..., D]`` to ``[..., H]``."""
        return self.layers(features)  # type: ignore[no-any-return]


class VectorProjector(nn.Module):
    """A vector becomes ``width`` tokens, each by an MLP of its own; all of them run as one batched product.

    Args:
        num_layers: Linear maps of each MLP, with exact GELU between them.
        in_features: Width D of the encoder.
        out_features: Hidden size H of the language model.
        width: Tokens K of one vector.

    Source:
        multi_token (Sshh 2023), the projector of encoders that give one vector an item; a long item may have more.
    """

    def __init__(self, num_layers: int, in_features: int, out_features: int, width: int) -> None:
        super().__init__()
        self.width = width
        layers: list[nn.Module] = [StackedLinear(width, in_features, out_features)]
        for _ in range(num_layers - 1):
            layers += [nn.GELU(), StackedLinear(width, out_features, out_features)]
        self.layers = nn.Sequential(*layers)

    def num_tokens(self, positions: int) -> int:
        """Tokens made of one item: ``width`` for each vector that its encoder gives."""
        return self.width * positions

    def forward(self, features: Tensor) -> Tensor:
        """Project ``[N, P, D]`` to ``[N, P * K, H]``, the tokens of a vector side by side."""
        items, positions = features.shape[:2]
        vectors = features.flatten(0, 1).expand(self.width, -1, -1)  # [K, N * P, D]
        tokens: Tensor = self.layers(vectors)  # [K, N * P, H]
        return tokens.transpose(0, 1).reshape(items, positions * self.width, tokens.shape[-1])


class StackedLinear(nn.Module):
    """``count`` linear maps that know nothing of each other: ``[K, N, in]`` to ``[K, N, out]`` in one product.

    ``weight[k]`` and ``bias[k]`` are those of ``nn.Linear(in, out)`` number k, and start as these do.
    """

    def __init__(self, count: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(count, out_features))
        bound = in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply map k to ``inputs[k]``."""
        return torch.baddbmm(self.bias.unsqueeze(1), inputs, self.weight.transpose(1, 2))


def _layers(kind: str, in_features: int, out_features: int) -> list[nn.Module]:
    if kind == "identity":
        if in_features != out_features:
            raise UsageError(
                f"Projector 'identity' needs equal widths, got {in_features} (encoder) and {out_features} (LM).",
                fix="use projector 'linear' or 'mlp2x_gelu'",
            )
        return []
    match = _MLP.match("mlp1x_gelu" if kind == "linear" else kind)
    if match is None:
        raise UsageError(
            f"Unknown projector '{kind}'. Allowed: linear, identity, mlpNx_gelu with N from 1 to 999.",
            fix="use 'mlp2x_gelu'",
        )
    layers: list[nn.Module] = [nn.Linear(in_features, out_features)]
    for _ in range(int(match.group(1)) - 1):
        layers += [nn.GELU(), nn.Linear(out_features, out_features)]
    return layers
