"""Weights that several processes share out, by FSDP2 or by DeepSpeed's ZeRO-3: whole, in part, and put back.

A weight of FSDP2 is a ``DTensor``. One of ZeRO-3 keeps its class; DeepSpeed marks it with ``ds_*`` attributes and
leaves no elements in it while it is not gathered. Everything else is whole in every process.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def shape_of(tensor: Tensor) -> torch.Size:
    """The shape of the whole weight."""
    found: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return found


def num_elements(tensor: Tensor) -> int:
    """Elements of the whole weight."""
    return math.prod(shape_of(tensor))


def whole(tensor: Tensor, *, keep: bool = True) -> Tensor:
    """A tensor put together on the CPU where it is shared out; an empty one unless it is kept.

    Called by every process that has a share.
    """
    if _is_scattered(tensor):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([tensor]):
            return tensor.detach().cpu().clone() if keep else torch.empty(0)
    found = tensor.detach()
    if isinstance(found, DTensor):
        found = found.full_tensor().cpu()
    return found if keep else torch.empty(0)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a weight."""
    found = tensor.detach()
    if isinstance(found, DTensor):
        return found.to_local()
    if not _is_scattered(tensor):
        return found
    part: Tensor = tensor.ds_tensor  # type: ignore[attr-defined]
    start = part.numel() * torch.distributed.get_rank()  # the last parts are filled up with anything
    return part.detach().flatten()[: max(0, num_elements(tensor) - start)]


def like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, shared out as FSDP2 shares a parameter."""
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


@torch.no_grad()
def put(parameter: Tensor, tensor: Tensor) -> None:
    """Write a whole tensor into a weight, and into the copy that a ZeRO optimizer updates; called by every process."""
    if _is_scattered(parameter):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(tensor)
    else:
        parameter.copy_(like(parameter, tensor))
    if is_managed(parameter):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, tensor.to(parameter.device))


def is_managed(parameter: Tensor) -> bool:
    """Whether an optimizer of DeepSpeed updates the weight, from a copy of its own."""
    return bool(vars(parameter).keys() & {"ds_id", "_hp_mapping"})  # set by ZeRO-3 and ZeRO-2


def _is_scattered(tensor: Tensor) -> bool:
    """Whether ZeRO-3 keeps the elements elsewhere now."""
    return tensor.numel() != num_elements(tensor)
