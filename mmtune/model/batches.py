"""Batches that fit: moved to a device, and halved when memory runs out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmtune.core.errors import ResourceError

Item = TypeVar("Item")
Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)
_CPU_ALLOCATOR = "DefaultCPUAllocator"  # the only mark by which torch tells a failed CPU allocation from other errors


def to_device(value: Any, device: torch.device | str) -> Any:
    """The same nested mapping with all tensors on a device; everything else is passed through."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(inner, device) for key, inner in value.items()}
    return value


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on an accelerator or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)


def halving(
    items: Sequence[Item],
    batch_size: int,
    work: Callable[[Sequence[Item]], Sequence[Result]],
    give_up: Callable[[Item, ResourceError], Result] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Run ``work`` on slices of ``items``; one that does not fit is tried again in halves, and later ones stay small.

    Args:
        give_up: What stands in for the result of a single item that does not fit; without it that is an error.

    Yields:
        Each item with its result, in the order of ``items``, as soon as its slice is done.

    Raises:
        ResourceError: A single item does not fit.
    """
    start, size = 0, max(1, batch_size)
    while start < len(items):
        part = items[start : start + size]
        try:
            results = work(part)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(part) > 1:
                size = max(1, len(part) // 2)
                _LOG.warning("out of memory with %d rows at once; going on with %d", len(part), size)
                _free()
                continue
            problem = ResourceError(
                f"Out of memory with a single row: {error}", fix="use a shorter input, fewer beams or another device"
            )
            if give_up is None:
                raise problem from error
            results = [give_up(part[0], problem)]
        yield from zip(part, results, strict=True)
        start += len(part)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
