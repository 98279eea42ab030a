"""Adapters at sites of a transformer."""

from __future__ import annotations

import torch
from torch import nn

from mmtune.core.conditioning import Slot
from mmtune.core.perception import Perception
from mmtune.hosts.blocks import attach_routed
from mmtune.hosts.host import Site
from mmtune.nn.adapter import RoutedAdapter


def test_autocast_keeps_what_leaves_a_site_as_wide_as_in_training() -> None:
    torch.manual_seed(0)
    norm, adapter, slot = nn.LayerNorm(8), RoutedAdapter(8, 4, temperature=1.0).eval(), Slot()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    attach_routed([Site("site", 8, 8, norm, norm)], [adapter], slot)
    x = torch.randn(2, 3, 8)
    with slot.bind(Perception(routes={"site": torch.rand(2, 2)})), torch.autocast("cpu", torch.bfloat16):
        trained = norm(x)
        with torch.no_grad():
            answered = norm(x)
    assert answered.dtype == torch.float32
    assert torch.equal(answered, trained)
