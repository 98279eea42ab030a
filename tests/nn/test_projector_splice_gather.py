"""Projectors, splicing and grouping."""

import pytest
import torch

from mmtune.core.errors import ShapeError, UsageError
from mmtune.core.perception import Features
from mmtune.nn.gather import group_by_owner
from mmtune.nn.projector import Projector
from mmtune.nn.splice import splice_tokens


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("linear", {"layers.0.weight", "layers.0.bias"}),
        ("mlp1x_gelu", {"layers.0.weight", "layers.0.bias"}),
        ("mlp2x_gelu", {f"layers.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}),
        ("mlp3x_gelu", {f"layers.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")}),
        ("identity", set()),
    ],
)
def test_projector_layers(kind: str, names: set[str]) -> None:
    width = 8 if kind == "identity" else 5
    projector = Projector(kind, width, 8)
    assert set(projector.state_dict()) == names
    assert projector(torch.randn(2, 3, width)).shape == (2, 3, 8)


@pytest.mark.parametrize("kind", ["mlp0x_gelu", "mlp2x_relu", "resampler", ""])
def test_unknown_projector_names_what_is_allowed(kind: str) -> None:
    with pytest.raises(UsageError, match="mlpNx_gelu"):
        Projector(kind, 4, 8)


def test_identity_needs_equal_widths() -> None:
    with pytest.raises(UsageError, match="equal widths"):
        Projector("identity", 4, 8)


def test_splice_puts_tokens_in_reading_order_and_passes_gradients() -> None:
    embeddings = torch.zeros(2, 3, 2)
    places = torch.tensor([[False, True, True], [True, False, False]])
    tokens = torch.arange(6.0).view(3, 2).requires_grad_()
    spliced = splice_tokens(embeddings, places, tokens)
    assert spliced[0].tolist() == [[0, 0], [0, 1], [2, 3]]
    assert spliced[1].tolist() == [[4, 5], [0, 0], [0, 0]]
    (spliced * 2).sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, torch.full((3, 2), 2.0))


def test_splice_refuses_another_number_of_tokens() -> None:
    with pytest.raises(ShapeError, match="1 placeholder positions but the method gave 2"):
        splice_tokens(torch.zeros(1, 2, 4), torch.tensor([[True, False]]), torch.zeros(2, 4))


def test_items_of_a_sample_stand_beside_each_other() -> None:
    values = torch.arange(4.0).view(4, 1, 1).expand(4, 2, 3)
    grouped, mask, samples = group_by_owner(Features(values, torch.tensor([0, 2, 2, 2])))
    assert samples.tolist() == [0, 2]
    assert grouped[:, :, 0, 0].tolist() == [[0, 0, 0], [1, 2, 3]]
    assert mask is not None
    assert mask[:, :, 0].tolist() == [[True, False, False], [True, True, True]]


def test_one_item_each_needs_no_mask() -> None:
    grouped, mask, samples = group_by_owner(Features(torch.randn(2, 4, 3), torch.tensor([1, 3])))
    assert grouped.shape == (2, 1, 4, 3)
    assert mask is None
    assert samples.tolist() == [1, 3]
