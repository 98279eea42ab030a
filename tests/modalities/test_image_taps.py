"""What LaVIN asks of pictures: class tokens along the way, a deformed square, ImageNet's statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune.core.errors import UsageError
from mmtune.modalities.image import ImageModality
from mmtune.model.build import build_model
from tests.tiny import save_tiny_lm, save_tiny_vision

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize(("every", "blocks"), [(1, [1, 2, 3]), (2, [2]), (4, [3])])
def test_taps(tmp_path: Path, kind: str, every: int, blocks: list[int]) -> None:
    """After every n-th block; an encoder of fewer blocks is tapped after its last one."""
    source = save_tiny_vision(tmp_path, kind)
    modality = ImageModality.from_source(source, settings={"select": "taps", "tap_every": every})
    encoder = modality.load_encoder(torch.float32)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        values, mask, breaks = modality.encode(encoder, {"pixel_values": pixels})
        states = encoder(pixels, output_hidden_states=True).hidden_states
    assert modality.num_positions == len(blocks) == values.shape[1]
    assert mask is None
    assert breaks is None
    for place, block in enumerate(blocks):
        wanted = states[block].mean(1) if kind == "siglip" else states[block][:, 0]
        assert torch.equal(values[:, place], wanted)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_stretched_and_normalised_as_published(tmp_path: Path, kind: str) -> None:
    """Exactly the encoder's square by Pillow's bicubic, whatever sizes its own preparation goes through."""
    source = save_tiny_vision(tmp_path, kind)
    modality = ImageModality.from_source(source, settings={"aspect": "stretch", "statistics": "imagenet"})
    noise = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    found = modality.load(picture)["pixel_values"]
    resized = torch.from_numpy(np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC)).copy())
    wanted = ((resized.float() / 255 - MEAN) / STD).permute(2, 0, 1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_taps_are_no_places(tmp_path: Path) -> None:
    source = save_tiny_vision(tmp_path)
    with pytest.raises(UsageError, match="taps"):
        ImageModality.from_source(source, settings={"select": "taps", "aspect": "anyres"})


def test_a_method_wants_settings_and_a_recipe_goes_before_them(tmp_path: Path) -> None:
    base, vision = save_tiny_lm(tmp_path / "lm"), save_tiny_vision(tmp_path / "vision")

    def settings(**given: Any) -> Any:
        entry = {"source": vision, "settings": given}
        model, _ = build_model(base=base, encoders={"image": entry}, method="lavin", template="lavin")
        return model.modalities["image"].settings

    own = settings()
    assert (own.select, own.tap_every, own.aspect, own.statistics) == ("taps", 4, "stretch", "imagenet")
    mixed = settings(aspect="pad", tap_every=1)
    assert (mixed.select, mixed.tap_every, mixed.aspect, mixed.statistics) == ("taps", 1, "pad", "imagenet")
