"""Deltas at every site of every family equal the same model with its weights merged, one sample at a time."""

from __future__ import annotations

import pytest
import torch

from mmtune.core.conditioning import Slot
from mmtune.core.perception import LowRank, Perception
from mmtune.hosts.host import Host, attach_deltas
from tests.hosts.families import SOME_FIRST, VARIANTS, all_sites, make, merged, prompts, random_deltas


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_deltas_equal_merged_weights(variant: str) -> None:
    model = make(variant)
    host, slot, ids = Host(model), Slot(), prompts()
    sites = all_sites(host)
    plain = model(ids).logits
    perception = random_deltas(sites)
    expected = torch.cat(
        [merged(model, perception, sample)(ids[sample : sample + 1]).logits for sample in range(len(ids))]
    )
    attach_deltas(host, sites, slot)
    with slot.bind(perception):
        found = model(ids).logits
    assert (found - expected).abs().max() < 2e-4
    assert (expected - plain).abs().max() > 1e-2  # the deltas do matter
    assert torch.equal(model(ids).logits, plain)  # nothing is left behind


@pytest.mark.parametrize("variant", SOME_FIRST)
@torch.no_grad()
def test_each_site_alone(variant: str) -> None:
    """A delta of one kind equals its merge too, so that errors at two sites cannot hide each other."""
    model = make(variant)
    host, slot, ids = Host(model), Slot(), prompts()
    sites = all_sites(host)
    attach_deltas(host, sites, slot)
    for site in sites[5:]:
        perception = random_deltas([site], scale=0.5)
        with slot.bind(perception):
            found = model(ids[:1].repeat(2, 1)).logits[1]
        slot.perception = None
        reference = merged(model, perception, 1)
        assert (found - reference(ids[:1]).logits[0]).abs().max() < 2e-4, site.name


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_zero_b_changes_nothing(variant: str) -> None:
    model = make(variant)
    host, slot, ids = Host(model), Slot(), prompts()
    sites = all_sites(host)
    plain = model(ids).logits
    attach_deltas(host, sites, slot)
    zero = Perception(
        deltas={
            name: LowRank(delta.a, torch.zeros_like(delta.b)) for name, delta in random_deltas(sites).deltas.items()
        }
    )
    with slot.bind(zero):
        assert torch.equal(model(ids).logits, plain)


@pytest.mark.parametrize("variant", VARIANTS)
def test_base_keeps_its_names(variant: str) -> None:
    model = make(variant)
    before = list(model.state_dict())
    host = Host(model)
    attach_deltas(host, all_sites(host), Slot())
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_removed_updates_are_gone(variant: str) -> None:
    model, slot, ids = make(variant), Slot(), torch.randint(3, 60, (2, 5))
    plain = model(ids).logits
    host = Host(model)
    sites = all_sites(host)
    handles = attach_deltas(host, sites, slot)
    with slot.bind(random_deltas(sites)):
        assert not torch.equal(model(ids).logits, plain)
        for handle in handles:
            handle.remove()
        assert torch.equal(model(ids).logits, plain)
