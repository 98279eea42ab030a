"""Items that an encoder reads in several windows: encoded all at once, put together again.

Shapes: N items, C windows of all items, p positions of one window, L positions of the longest item, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PADDING = -1  # stands in a layout behind the end of an item


def lay_out_windows(kept: Sequence[Tensor], positions: int) -> Tensor:
    """Where the positions of each item stand among the positions of all windows.

    Args:
        kept: For each item the number of real positions of each of its windows; they stand first in it.
        positions: p, real or not.

    Returns:
        ``[N, L]`` int64: indices into ``[C * p]``, ``PADDING`` behind the end.
    """
    rows, window = [], 0
    for counts in kept:
        places = []
        for count in counts.tolist():
            places.append(torch.arange(count) + window * positions)
            window += 1
        rows.append(torch.cat(places))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)


def put_together(values: Tensor, layout: Tensor) -> tuple[Tensor, Tensor]:
    """Values of all windows ``[C, p, D]`` as values of items ``[N, L, D]`` with their mask ``[N, L]``."""
    return values.flatten(0, 1)[layout.clamp(min=0)], layout != PADDING
