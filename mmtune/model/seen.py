"""The last perception, so that a second question about the same media need not look at them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmtune.core.perception import Perception

Media = Mapping[str, Mapping[str, Tensor]]


class Seen:
    """Keeps what a model perceived last. Use one for as long as the model's weights stay as they are.

    Attributes:
        looks: How often the encoders really ran.
    """

    def __init__(self) -> None:
        self.looks = 0
        self._media: Media | None = None
        self._batch_size = 0
        self._perception = Perception()

    def perceive(self, model: Any, media: Media | None, batch_size: int) -> Perception:
        """``model.perceive``, or what it gave last when media and batch size are the same."""
        if not media:
            found: Perception = model.perceive(None, batch_size)
            return found
        if self._media is None or batch_size != self._batch_size or not _equal(media, self._media):
            self._perception = model.perceive(media, batch_size)
            self._media, self._batch_size = media, batch_size
            self.looks += 1
        return self._perception


def _equal(media: Media, other: Media) -> bool:
    return media.keys() == other.keys() and all(
        inputs.keys() == other[name].keys()
        and all(torch.equal(tensor, other[name][key]) for key, tensor in inputs.items())
        for name, inputs in media.items()
    )
