"""Grouping media items by the sample they belong to, without a loop over samples."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtune.core.perception import Features


def group_by_owner(features: Features) -> tuple[Tensor, Tensor | None, Tensor]:
    """Lay the items of each sample beside each other.

    Returns:
        values: ``[S, I, P, D]`` for the S samples that have items, I the most items of one, zeros where it has fewer.
        mask: ``[S, I, P]`` bool, or None when nothing is padded.
        samples: ``[S]`` int64, the index of each of these samples in the batch.
    """
    samples, row, counts = torch.unique_consecutive(features.owner, return_inverse=True, return_counts=True)
    most = int(counts.max())
    num_items, positions = features.values.shape[:2]
    if most == 1:
        mask = None if features.mask is None else features.mask.unsqueeze(1)
        return features.values.unsqueeze(1), mask, samples
    starts = counts.cumsum(0) - counts  # [S]
    place = torch.arange(num_items, device=row.device) - starts[row]  # [N], which item of its sample
    values = features.values.new_zeros(len(samples), most, *features.values.shape[1:])
    values = values.index_put((row, place), features.values)
    real = features.mask if features.mask is not None else row.new_ones(num_items, positions, dtype=torch.bool)
    mask = row.new_zeros(len(samples), most, positions, dtype=torch.bool).index_put((row, place), real)
    return values, mask, samples
