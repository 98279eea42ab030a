"""Blocks of a transformer: adapters at their sites, mixed by routes, and leaving out those that nobody reads.

Shapes: B samples, k beams of a sample, T positions, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mmtune.core.conditioning import Slot
from mmtune.core.errors import ShapeError
from mmtune.hosts.extension import extend
from mmtune.hosts.host import Host, Site
from mmtune.nn.adapter import FoldedAdapter, RoutedAdapter


def attach_routed(sites: Sequence[Site], adapters: Sequence[RoutedAdapter], slot: Slot) -> list[RemovableHandle]:
    """Put one adapter onto each site; it acts while the slot holds a perception with a route of the site's name.

    While the slot's perception asks for decisions, each site routes on position 0 of its own input, acts by that, and
    leaves the weights in ``decisions``.

    Args:
        sites: Where to add; names must be unique per slot.
        adapters: A :class:`RoutedAdapter` for each site.
        slot: Read at every call.
    """
    pairs = zip(sites, adapters, strict=True)
    return [extend(site.last, _Routed(site.name, adapter, slot).adapt) for site, adapter in pairs]


def attach_self_routed(
    sites: Sequence[Site], adapters: Sequence[RoutedAdapter], *, by_first: bool = False
) -> list[RemovableHandle]:
    """Put one adapter onto each site that routes each position by itself, whatever the slot holds.

    Args:
        by_first: Let the first row of the batch decide for all rows, position by position.
    """
    pairs = zip(sites, adapters, strict=True)
    return [extend(site.last, _SelfRouted(adapter, by_first).adapt) for site, adapter in pairs]


@contextmanager
def only_first(host: Host, count: int) -> Iterator[None]:
    """Run no more than the first blocks: the others pass on what they get, until the end of the ``with``.

    Their weights stay where they are, under their names. For reading hidden states ``0`` to ``count``: what leaves the
    model as a whole is then another value.

    Args:
        count: Blocks that run.
    """
    # A block whose forward somebody has replaced already, another thread perhaps, is left as it is: it only costs time.
    idle = [block for block in host.blocks()[count:] if "forward" not in vars(block)]
    for block in idle:
        block.forward = _pass_on
    try:
        yield
    finally:
        for block in idle:
            vars(block).pop("forward", None)


def _pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


@dataclass(slots=True)
class _Folded:
    """An adapter with its experts mixed, and what it was mixed for.

    Answering meets the same routes at every step, so that mixing the experts once is enough.
    """

    weights: Tensor  # [B, E]
    dtype: torch.dtype
    device: str  # kind of the device, as autocast names it
    adapter: FoldedAdapter | None = None  # None until it is needed


class _Routed:
    """The adapter at one site, by what the slot holds."""

    def __init__(self, name: str, adapter: RoutedAdapter, slot: Slot) -> None:
        self.name, self.adapter, self.slot = name, adapter, slot
        self.folded: _Folded | None = None

    def adapt(self, _: Tensor, output: Tensor) -> Tensor:
        perception = self.slot.perception
        if perception is None:
            return output
        if perception.decisions is not None:
            return self._decided(output, perception.decisions)
        weights = perception.routes.get(self.name)
        if weights is None:
            return output
        if output.shape[0] % weights.shape[0]:
            raise ShapeError(
                f"{output.shape[0]} rows cannot be shared out among the routes of {weights.shape[0]} samples.",
                where=self.name,
                fix="give one route per sample, or a whole number of beams per sample",
            )
        folded = self.folded
        if folded is None or folded.weights is not weights or folded.dtype is not output.dtype:
            # To ask a tensor for its kind of device costs as much as what the adapter does, so it is asked once.
            folded = _Folded(weights, output.dtype, output.device.type)
        if torch.is_grad_enabled() or self.adapter.training or torch.is_autocast_enabled(folded.device):
            self.folded = None
            weights = weights.repeat_interleave(output.shape[0] // weights.shape[0], dim=0)  # beams beside each other
            adapted: Tensor = self.adapter(output, weights.unsqueeze(1))
            return adapted
        if folded.adapter is None:
            folded.adapter = self.adapter.fold(weights, output.dtype)
            self.folded = folded
        return folded.adapter(output)

    def _decided(self, output: Tensor, decisions: dict[str, Tensor]) -> Tensor:
        self.folded = None
        weights = decisions[self.name] = self.adapter.route(output[:, 0])  # [B, E]
        adapted: Tensor = self.adapter(output, weights.unsqueeze(1))
        return adapted


class _SelfRouted:
    """The adapter at one site of an encoder."""

    def __init__(self, adapter: RoutedAdapter, by_first: bool) -> None:
        self.adapter, self.by_first = adapter, by_first

    def adapt(self, _: Tensor, output: Tensor) -> Tensor:
        asked = output[:1] if self.by_first else output
        adapted: Tensor = self.adapter(output, self.adapter.route(asked))  # [N, T, E] or [1, T, E]
        return adapted
