"""Maps from encoder width to the hidden size of a language model."""

from __future__ import annotations

import re

from torch import Tensor, nn

from mmtune.core.errors import UsageError

_MLP = re.compile(r"^mlp([1-9]\d*)x_gelu$")


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

    def forward(self, features: Tensor) -> Tensor:
        """Project ``[..., D]`` to ``[..., H]``."""
        return self.layers(features)  # type: ignore[no-any-return]


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
            f"Unknown projector '{kind}'. Allowed: linear, identity, mlpNx_gelu with N >= 1.", fix="use 'mlp2x_gelu'"
        )
    layers: list[nn.Module] = [nn.Linear(in_features, out_features)]
    for _ in range(int(match.group(1)) - 1):
        layers += [nn.GELU(), nn.Linear(out_features, out_features)]
    return layers
