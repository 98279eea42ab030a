"""The weights generator: shapes, initialisation, masks."""

import pytest
import torch
from torch import nn

from mmtune.core.errors import UsageError
from mmtune.nn.weights_generator import WeightsGenerator


def generator(**options: object) -> WeightsGenerator:
    torch.manual_seed(0)
    settings = {"width": 32, "depth": 2, "heads": 4, **options}
    return WeightsGenerator(6, 5, [(2, 12), (3, 8)], **settings)  # type: ignore[arg-type]


def test_every_decoder_gives_its_own_shape() -> None:
    first, second = generator()(torch.randn(4, 1, 5, 6))
    assert first.shape == (4, 2, 12)
    assert second.shape == (4, 3, 8)


def test_paper_initialisation() -> None:
    made = generator(width=64, heads=16)
    assert float(made.visual_projection.weight.std()) == pytest.approx(0.02, rel=0.15)
    assert float(made.position_embedding.std()) == pytest.approx(1.0, rel=0.15)
    for module in made.modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
        if isinstance(module, nn.MultiheadAttention):
            bound = (6 / (64 + 3 * 64)) ** 0.5  # Xavier-uniform of the packed matrix
            assert float(module.in_proj_weight.abs().max()) <= bound
            assert float(module.in_proj_weight.abs().max()) > 0.9 * bound


def test_masked_items_do_not_count() -> None:
    made = generator().eval()
    features = torch.randn(1, 2, 5, 6)
    mask = torch.tensor([[[True] * 5, [False] * 5]])
    alone = made(features[:, :1])
    other = made(torch.cat([features[:, :1], torch.randn(1, 1, 5, 6)], dim=1), mask)
    for left, right in zip(alone, other, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_width_must_be_a_multiple_of_heads() -> None:
    with pytest.raises(UsageError, match="no multiple of its 16 heads"):
        generator(width=40, heads=16)
