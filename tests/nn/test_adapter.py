"""Routed adapters against their definition with grouped convolutions, expert by expert."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

from mmtune.core.errors import UsageError
from mmtune.nn.adapter import RoutedAdapter


def made(width: int = 12, bottleneck: int = 4, **settings: float) -> RoutedAdapter:
    torch.manual_seed(0)
    adapter = RoutedAdapter(width, bottleneck, temperature=3.0, **settings)  # type: ignore[arg-type]
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    return adapter


def by_definition(adapter: RoutedAdapter, x: Tensor, weights: Tensor) -> Tensor:
    inner = conv1d(x.transpose(1, 2), adapter.down.weight.unsqueeze(-1), adapter.down.bias)
    update = torch.zeros_like(x)
    for index, expert in enumerate(adapter.up):
        out = conv1d(inner, expert.weight.unsqueeze(-1), expert.bias, groups=adapter.groups).transpose(1, 2)
        update = update + weights[..., index : index + 1] * out
    return x + adapter.scale * update


@pytest.mark.parametrize("settings", [{}, {"scale": 0.5}, {"groups": 4, "num_experts": 3}])
@pytest.mark.parametrize("rows", [(2, 1), (2, 5), (1, 5)])
def test_equals_the_definition(settings: dict[str, float], rows: tuple[int, int]) -> None:
    adapter = made(**settings)
    x = torch.randn(2, 5, 12)
    weights = torch.randn(*rows, len(adapter.up)).softmax(-1)
    torch.testing.assert_close(adapter(x, weights), by_definition(adapter, x, weights))


@pytest.mark.parametrize("settings", [{}, {"scale": 0.5}, {"groups": 4, "num_experts": 3}])
@pytest.mark.parametrize("beams", [1, 3])
def test_folded_it_gives_the_same(settings: dict[str, float], beams: int) -> None:
    adapter = made(**settings)
    x = torch.randn(2 * beams, 5, 12)
    weights = torch.randn(2, len(adapter.up)).softmax(-1)
    wanted = adapter(x, weights.repeat_interleave(beams, dim=0).unsqueeze(1))
    torch.testing.assert_close(adapter.fold(weights, x.dtype)(x), wanted)


def test_routes_sum_to_one_and_divide_by_the_temperature() -> None:
    adapter = made()
    x = torch.randn(2, 5, 12)
    routes = adapter.route(x)
    torch.testing.assert_close(routes, (adapter.router(x) / 3.0).softmax(-1))
    torch.testing.assert_close(routes.sum(-1), torch.ones(2, 5))


def test_starts_as_the_identity_and_learns_from_the_way_up() -> None:
    adapter = RoutedAdapter(8, 4, temperature=10.0)
    x = torch.randn(1, 3, 8)
    out = adapter(x, adapter.route(x))
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert all(expert.weight.grad.any() and expert.bias.grad.any() for expert in adapter.up)
    assert not adapter.down.weight.grad.any()
    assert not adapter.router.weight.grad.any()


def test_keeps_the_dtype_of_what_it_changes() -> None:
    adapter = made()
    x = torch.randn(2, 3, 12, dtype=torch.bfloat16)
    assert adapter(x, adapter.route(x)).dtype == torch.bfloat16


def test_dropout_acts_in_training_alone() -> None:
    adapter = made(dropout=0.5)
    x, weights = torch.randn(2, 3, 12), torch.tensor([0.5, 0.5])
    assert not torch.equal(adapter(x, weights), adapter(x, weights))
    adapter.eval()
    assert torch.equal(adapter(x, weights), adapter(x, weights))


@pytest.mark.parametrize(("width", "bottleneck"), [(12, 3), (9, 4)])
def test_sizes_must_divide(width: int, bottleneck: int) -> None:
    with pytest.raises(UsageError, match="groups"):
        RoutedAdapter(width, bottleneck, temperature=1.0)
