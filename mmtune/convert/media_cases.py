"""Items of every kind of media, made on the spot, to ask source and written folder about."""

from __future__ import annotations

import io
import math
from typing import Any

import torch
from PIL import Image

from mmtune.core.errors import NotPossibleError
from mmtune.modalities.base import Modality

_RATE, _SECONDS = 16000, 2
_FRAMES = 16
_TEXT = {"text": "The tide rose twice that day. Nobody on the pier had seen it so high. By noon the boats were in."}


def make_item(modality: Modality, image: Image.Image) -> Any:
    """An item that a modality can open.

    Args:
        image: What pictures and the frames of videos are made of.

    Raises:
        NotPossibleError: A kind of media that none is known for.
    """
    kinds = (*modality.takes, modality.name)
    if modality.name == "imagebind":
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()
    if "image" in kinds:
        return image
    if "audio" in kinds:
        ticks = torch.arange(_RATE * _SECONDS) / _RATE
        tone = 0.5 * torch.sin(2 * math.pi * 330 * ticks) * torch.linspace(0, 1, len(ticks))
        return {"array": tone.numpy(), "sampling_rate": _RATE}
    if "video" in kinds:
        return [image.rotate(3 * index) for index in range(_FRAMES)]
    if "document" in kinds:
        return dict(_TEXT)
    raise NotPossibleError(
        f"No sample of '{modality.name}' is known to compare the written folder with.", fix="add --no-verify"
    )
