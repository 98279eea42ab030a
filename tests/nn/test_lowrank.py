"""The low-rank path equals the materialised update in every arrangement of rows."""

from __future__ import annotations

import pytest
import torch

from mmtune.core.errors import ShapeError
from mmtune.core.perception import LowRank
from mmtune.nn.lowrank import add_low_rank, apply_low_rank


def factors(batch: int = 3, shared: bool = True) -> LowRank:
    torch.manual_seed(0)
    return LowRank(torch.randn(batch, 5, 2), torch.randn(1 if shared else batch, 2, 7))


@pytest.mark.parametrize("shared", [True, False])
def test_equals_the_materialised_update(shared: bool) -> None:
    delta = factors(shared=shared)
    x = torch.randn(3, 4, 5)
    expected = torch.stack([x[i] @ (delta.a[i] @ delta.b[0 if shared else i]) for i in range(3)])
    torch.testing.assert_close(apply_low_rank(x, delta), expected)


@pytest.mark.parametrize("shared", [True, False])
def test_beams_share_the_factors_of_their_sample(shared: bool) -> None:
    delta = factors(shared=shared)
    x = torch.randn(3 * 4, 6, 5)
    b = delta.b if shared else delta.b.repeat_interleave(4, dim=0)
    repeated = LowRank(delta.a.repeat_interleave(4, dim=0), b)
    torch.testing.assert_close(apply_low_rank(x, delta), apply_low_rank(x, repeated))


def test_flattened_tokens_stay_with_their_sample() -> None:
    delta = factors()
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(apply_low_rank(x.flatten(0, 1), delta), apply_low_rank(x, delta).flatten(0, 1))


def test_keeps_the_dtype_of_the_input() -> None:
    assert apply_low_rank(torch.randn(3, 4, 5, dtype=torch.bfloat16), factors()).dtype == torch.bfloat16


def test_gradients_reach_both_factors() -> None:
    delta = LowRank(factors().a.requires_grad_(), factors().b.requires_grad_())
    apply_low_rank(torch.randn(3, 4, 5), delta).sum().backward()
    assert delta.a.grad is not None
    assert delta.b.grad is not None


@pytest.mark.parametrize(
    ("x", "delta", "said"),
    [
        (torch.zeros(4, 2, 5), factors(3), "shared out"),
        (torch.zeros(3, 2, 6), factors(3), "wide"),
        (torch.zeros(3, 2, 5), LowRank(torch.zeros(3, 5, 2), torch.zeros(2, 2, 7)), "needs 1 or 3"),
        (torch.zeros(3, 2, 5), LowRank(torch.zeros(3, 5, 2), torch.zeros(1, 4, 7)), "rank 2"),
    ],
)
def test_refuses_what_does_not_fit(x: torch.Tensor, delta: LowRank, said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        apply_low_rank(x, delta)


@pytest.mark.parametrize("samples_of_b", [1, 3])
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("flat", [False, True])
def test_adding_equals_the_update_added(samples_of_b: int, beams: int, flat: bool) -> None:
    delta = LowRank(torch.randn(3, 5, 2, requires_grad=True), torch.randn(samples_of_b, 2, 7, requires_grad=True))
    x, output = torch.randn(3 * beams, 4, 5), torch.randn(3 * beams, 4, 7)
    x, output = (x.flatten(0, 1), output.flatten(0, 1)) if flat else (x, output)
    given, wanted = add_low_rank(output, x, delta), output + apply_low_rank(x, delta)
    torch.testing.assert_close(given, wanted)
    for one, other in zip(
        torch.autograd.grad(given.square().sum(), (delta.a, delta.b)),
        torch.autograd.grad(wanted.square().sum(), (delta.a, delta.b)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_adding_keeps_the_type_of_the_output() -> None:
    delta = LowRank(torch.randn(3, 5, 2), torch.randn(3, 2, 7))
    output = torch.randn(3, 4, 7, dtype=torch.bfloat16)
    assert add_low_rank(output, torch.randn(3, 4, 5), delta).dtype == torch.bfloat16
