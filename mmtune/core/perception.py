"""The three forms in which perception reaches a language model, and the features it is made of.

Shapes: B samples, N media items in reading order over the batch, P positions of one item, D encoder width, H hidden
size of the language model, M placeholder positions in reading order over the batch, E experts of a route.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Features:
    """What one modality's encoder saw, for the whole batch."""

    values: Tensor  # [N, P, D]
    owner: Tensor  # [N] int64, the sample each item belongs to, ascending
    mask: Tensor | None = None  # [N, P] bool, False where padded; None when all positions are real
    breaks: Tensor | None = None  # [N, P] bool, True where a row of tiles ends (LLaVA-1.6)


@dataclass(frozen=True, slots=True)
class LowRank:
    """A change ``A @ B`` of a linear map, one per sample: ``y += (x @ a) @ b``."""

    a: Tensor  # [B, in, r]
    b: Tensor  # [1 or B, r, out]


@dataclass(frozen=True, slots=True)
class Perception:
    """What a method hands to the language model: any mixture of tokens, deltas and routes."""

    tokens: Mapping[str, Tensor] = field(default_factory=dict)  # modality -> [M, H], one row a placeholder
    deltas: Mapping[str, LowRank] = field(default_factory=dict)  # site -> weights
    routes: Mapping[str, Tensor] = field(default_factory=dict)  # site -> [B, E], rows sum to 1
    decisions: dict[str, Tensor] | None = None  # of the pass that decides routes: each site leaves its own here
