"""VLoRA's perceptual weights generator: queries attend to patches and become low-rank weights.

Shapes: B samples, P positions, D encoder width, d generator width, n queries, L output length of one query.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmtune.core.errors import UsageError


class DecoderBlock(nn.Module):
    """Pre-norm block: self-attention over queries, cross-attention to patches, GELU feed-forward of ratio 4."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward_in = nn.Linear(width, 4 * width)
        self.feed_forward_out = nn.Linear(4 * width, width)

    def forward(self, queries: Tensor, patches: Tensor, ignore: Tensor | None) -> Tensor:
        """Update ``queries`` [B, n, d] from ``patches`` [B, P, d]; ``ignore`` [B, P] is True where padded."""
        normed = self.norm1(queries)
        queries = queries + self.self_attention(normed, normed, normed, need_weights=False)[0]
        normed = self.norm2(queries)
        queries = (
            queries + self.cross_attention(normed, patches, patches, key_padding_mask=ignore, need_weights=False)[0]
        )
        hidden = nn.functional.gelu(self.feed_forward_in(self.norm3(queries)))
        return queries + self.feed_forward_out(hidden)  # type: ignore[no-any-return]


class QueryDecoder(nn.Module):
    """Learned queries, decoder blocks, a final norm and one head shared by all queries.

    Args:
        outputs: L, the length of what the head gives for each query.
    """

    def __init__(self, queries: int, outputs: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, queries, width))
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, patches: Tensor, ignore: Tensor | None) -> Tensor:
        """Read ``patches`` [B, P, d] and return ``[B, n, L]``."""
        queries = self.queries.expand(patches.shape[0], -1, -1)
        for block in self.blocks:
            queries = block(queries, patches, ignore)
        return self.head(self.norm(queries))  # type: ignore[no-any-return]


class WeightsGenerator(nn.Module):
    """Patch features in, the flat A factors of every site out.

    Args:
        in_features: Encoder width D.
        positions: Number of positions P of one media item; the learned position embedding has this length.
        decoders: For each decoder its number of queries and the length of one query's output.
        width: Generator width d, a multiple of ``heads``.
        depth: Blocks a decoder.
        heads: Attention heads; the published model has 16.
        normalize_features: Apply a LayerNorm to the features first. Not part of the published architecture.
        initialization: ``paper`` or ``scaled`` (see ``reset_parameters``).

    Source:
        VLoRA (arXiv 2405.20339), section 3.3.
    """

    def __init__(
        self,
        in_features: int,
        positions: int,
        decoders: list[tuple[int, int]],
        *,
        width: int,
        depth: int,
        heads: int = 16,
        normalize_features: bool = False,
        initialization: str = "paper",
    ) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(
                f"The generator's dim {width} is no multiple of its {heads} heads.", fix="change dim or heads"
            )
        self.positions = positions
        self.feature_norm = nn.LayerNorm(in_features) if normalize_features else nn.Identity()
        self.visual_projection = nn.Linear(in_features, width)
        self.position_embedding = nn.Parameter(torch.empty(1, positions, width))
        self.decoders = nn.ModuleList(
            QueryDecoder(queries, outputs, width=width, depth=depth, heads=heads) for queries, outputs in decoders
        )
        self.reset_parameters(initialization)

    def reset_parameters(self, initialization: str) -> None:
        """Initialise everything in one place.

        ``paper`` is what the published code does: linear weights truncated normal 0.02, biases 0, queries and positions
        standard normal, packed attention input Xavier-uniform. ``scaled`` keeps the variance of activations (linear std
        1/sqrt(fan in), head 0.02, positions 0.5) and learns faster from small data.
        """
        scaled = initialization == "scaled"
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = 1 / math.sqrt(module.in_features) if scaled else 0.02
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.MultiheadAttention):
                nn.init.xavier_uniform_(module.in_proj_weight)
                nn.init.zeros_(module.in_proj_bias)
            if isinstance(module, QueryDecoder):
                nn.init.normal_(module.queries)
        nn.init.normal_(self.position_embedding, std=0.5 if scaled else 1.0)
        if scaled:
            for decoder in self.decoders:
                nn.init.trunc_normal_(decoder.head.weight, std=0.02)  # type: ignore[arg-type, union-attr]

    def forward(self, features: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Generate weights from one or several items a sample.

        Args:
            features: ``[B, I, P, D]``, I items a sample.
            mask: ``[B, I, P]`` bool, False where padded; None when all positions are real.

        Returns:
            For each decoder ``[B, n, L]``.
        """
        patches = self.visual_projection(self.feature_norm(features)) + self.position_embedding  # [B, I, P, d]
        ignore = None if mask is None else ~mask.flatten(1)  # [B, I * P]
        patches = patches.flatten(1, 2)  # [B, I * P, d]
        return [decoder(patches, ignore) for decoder in self.decoders]
