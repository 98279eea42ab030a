"""What of an encoder takes part in reading: what no item reaches cannot learn, and is not trained."""

from __future__ import annotations

import torch
from torch import nn

from mmtune.methods.base import Method
from mmtune.modalities.base import Modality
from mmtune.model.batches import to_device


def unread_parameters(name: str, modality: Modality, encoder: nn.Module, method: Method) -> list[nn.Parameter]:
    """The trained parameters inside an encoder that no item reaches; none where that differs between items.

    Such are the blocks behind the last one that is read, a pooling head whose output nobody takes, the text half of a
    model of two halves. A blank item is read once, and its features are asked for their gradients.

    Args:
        name: Of the modality in the model.
    """
    inside = [*encoder.parameters(), *method.encoder_parameters(name)]
    trained = [parameter for parameter in inside if parameter.requires_grad]
    blank = modality.blank() if trained else None
    if blank is None:
        return []
    inputs = {**modality.collate([blank]), "owner": torch.zeros(1, dtype=torch.int64)}
    device = trained[0].device
    try:
        with torch.enable_grad():
            values, _, _ = method.encode(modality, encoder, to_device(inputs, device))
        gradients = torch.autograd.grad(values.sum(), trained, allow_unused=True)
    except RuntimeError:
        if device.type == "meta":  # an encoder that decides by values, which are not there: planned as if all were read
            return []
        raise
    return [parameter for parameter, found in zip(trained, gradients, strict=True) if found is None]
