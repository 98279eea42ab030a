"""Per-sample low-rank updates of linear maps.

Shapes: B samples, k beams of a sample, T tokens, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtune.core.errors import ShapeError
from mmtune.core.perception import LowRank


def apply_low_rank(x: Tensor, delta: LowRank) -> Tensor:
    """Add nothing but the low-rank update of a linear map, one update per sample.

    Computes ``(x @ A_b) @ B_b`` for each sample b without forming ``A_b B_b``: O(T r (in + out)) a sample.

    Args:
        x: Input of the adapted map, ``[B, T, in]``, or ``[B * T, in]`` for models that flatten tokens (OPT).
        delta: One set of factors per sample. Under beam search ``x`` has ``B * k`` rows and each set serves k of them.

    Returns:
        The update, shaped like ``x`` with ``out`` last, in ``x.dtype``.

    Raises:
        ShapeError: The rows of ``x`` are no multiple of the samples in ``delta``, or the factors do not fit together.

    Source:
        VLoRA, Ma et al. 2024 (arXiv 2405.20339), parameter-space alignment.
    """
    samples, width, rank = delta.a.shape
    _check(x, delta, samples, width, rank)
    a = delta.a.to(x.dtype)  # [B, in, r]
    b = delta.b.to(x.dtype)  # [1 or B, r, out]
    # The rows of one sample are neighbours (its tokens, and its beams), so one reshape serves flattened tokens and
    # beams alike and equals a repeat_interleave of the factors.
    inner = x.reshape(samples, -1, width) @ a  # [B, k * T, r]
    update = inner @ (b[0] if b.shape[0] == 1 else b)  # [B, k * T, out]
    return update.reshape(*x.shape[:-1], b.shape[-1]).to(x.dtype)


def add_low_rank(output: Tensor, x: Tensor, delta: LowRank) -> Tensor:
    """``output`` plus the low-rank update of the map that made it from ``x``.

    With factors for each sample the sum is part of the second product, which matters where a step is one token: a
    fifth of the time of the update and the sum one after the other (128 wide, one CPU thread: 3.6 against 17.5 us). A
    view or a check of shapes costs as much there, and what is called once a step is never in the processor's cache.

    Args:
        output: What the map gave, ``[B * k, T, out]`` or flattened like ``x``.
        x: Its input; see :func:`apply_low_rank`, also for errors.
        delta: One set of factors per sample.

    Returns:
        A new tensor like ``output``.
    """
    a, b = delta.a, delta.b
    if b.shape[0] != a.shape[0] or not x.dtype == output.dtype == a.dtype == b.dtype:
        return output + apply_low_rank(x, delta).to(output.dtype)  # autocast narrows the output
    if (
        x.ndim == 3 and x.shape[::2] == a.shape[:2] and b.shape[1] == a.shape[2]
    ):  # [B, T, in]: no view, nothing to check
        return torch.baddbmm(output, torch.bmm(x, a), b)
    samples, width, rank = a.shape
    _check(x, delta, samples, width, rank)
    inner = torch.bmm(x.reshape(samples, -1, width), a)  # [B, k * T, r]
    return torch.baddbmm(output.reshape(samples, -1, output.shape[-1]), inner, b).reshape(output.shape)


def _check(x: Tensor, delta: LowRank, samples: int, width: int, rank: int) -> None:
    if x.shape[-1] != width:
        raise ShapeError(
            f"The input is {x.shape[-1]} wide, the factor A takes {width}.",
            fix="build the delta for this site's in_features",
        )
    if x.shape[0] % samples:
        raise ShapeError(
            f"{x.shape[0]} rows of the input cannot be shared out among {samples} samples of a delta.",
            fix="give one set of factors per sample, or a whole number of beams per sample",
        )
    if delta.b.shape[0] not in (1, samples) or delta.b.shape[1] != rank:
        raise ShapeError(
            f"A is {tuple(delta.a.shape)}, B is {tuple(delta.b.shape)}: B needs 1 or {samples} samples of rank {rank}.",
            fix="give A as [B, in, r] and B as [1 or B, r, out]",
        )
