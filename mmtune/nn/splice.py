"""Putting projected media where their placeholders stand."""

from __future__ import annotations

from torch import Tensor

from mmtune.core.errors import ShapeError


def splice_tokens(embeddings: Tensor, is_placeholder: Tensor, tokens: Tensor) -> Tensor:
    """Replace the embeddings at placeholder positions, in reading order.

    Args:
        embeddings: Text embeddings ``[B, T, H]``.
        is_placeholder: ``[B, T]`` bool, True where a media position stands.
        tokens: ``[M, H]``, one row a placeholder, in reading order over the batch.

    Returns:
        ``[B, T, H]`` in the dtype of ``embeddings``; gradients flow to ``tokens``.

    Raises:
        ShapeError: The number of placeholders is not M.
    """
    wanted = int(is_placeholder.sum())
    if wanted != tokens.shape[0]:
        raise ShapeError(
            f"The batch has {wanted} placeholder positions but the method gave {tokens.shape[0]} tokens.",
            fix="encode the samples with the processor saved beside this model",
        )
    mask = is_placeholder.unsqueeze(-1).expand_as(embeddings)  # [B, T, H]
    return embeddings.masked_scatter(mask, tokens.to(embeddings.dtype))
