"""Blocks of a picture encoder behind the last one that is read do not run, and nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmtune.hosts.host import Host
from mmtune.modalities.image import ImageModality
from tests.tiny import save_tiny_vision

KINDS = ["clip", "siglip", "dinov2"]
READINGS = [
    ({"layer": -2}, 2),
    ({"layer": -1}, 3),
    ({"layer": 1}, 1),
    ({"layer": 0}, 0),
    ({"select": "taps", "tap_every": 2}, 2),
    ({"select": "taps", "tap_every": 4}, 3),
    ({"select": "pool"}, 3),
]


def read(folder: Path, kind: str, settings: dict[str, Any]) -> tuple[ImageModality, Any, torch.Tensor, list[int]]:
    """Modality, encoder, what it gave, and the blocks that did something."""
    modality = ImageModality.from_source(save_tiny_vision(folder, kind), settings=settings)
    encoder = modality.load_encoder(torch.float32)
    ran: list[int] = []
    handles = [
        block.get_submodule("mlp").register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, block in enumerate(Host(encoder).blocks())  # type: ignore[arg-type]
    ]
    torch.manual_seed(0)
    with torch.no_grad():
        values, _, _ = modality.encode(encoder, {"pixel_values": torch.randn(2, 3, 16, 16)})
    for handle in handles:
        handle.remove()
    return modality, encoder, values, ran


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("settings", "count"), READINGS)
def test_no_more_blocks_run_than_are_read(tmp_path: Path, kind: str, settings: dict[str, Any], count: int) -> None:
    _, encoder, _, ran = read(tmp_path, kind, settings)
    assert ran == list(range(count))
    assert len(Host(encoder).blocks()) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-2, -1, 1, 0])
def test_the_hidden_state_is_that_of_the_whole_encoder(tmp_path: Path, kind: str, layer: int) -> None:
    """Before any norm, also for encoders whose own output is normalised; afterwards the encoder is whole again."""
    modality, encoder, values, _ = read(tmp_path, kind, {"layer": layer})
    torch.manual_seed(0)
    with torch.no_grad():
        state = encoder(torch.randn(2, 3, 16, 16), output_hidden_states=True).hidden_states[layer]
    assert torch.equal(values, state[:, 1:] if modality.class_token else state)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_saved(tmp_path: Path, kind: str) -> None:
    modality, encoder, _, _ = read(tmp_path / "first", kind, {"layer": -2})
    modality.save_source(encoder, str(tmp_path / "again"))
    before = load_file(tmp_path / "first" / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_whole_encoder(tmp_path: Path, kind: str) -> None:
    """A trained encoder learns the same; blocks that are not read had no gradient before either."""
    modality, encoder, _, _ = read(tmp_path, kind, {"layer": -2})
    whole = copy.deepcopy(encoder)
    pixels = torch.randn(2, 3, 16, 16)
    modality.encode(encoder, {"pixel_values": pixels})[0].square().sum().backward()
    state = whole(pixels, output_hidden_states=True).hidden_states[-2]
    (state[:, 1:] if modality.class_token else state).square().sum().backward()
    for (name, one), other in zip(encoder.named_parameters(), whole.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad), name


def test_an_error_leaves_the_encoder_whole(tmp_path: Path) -> None:
    modality, encoder, _, _ = read(tmp_path, "clip", {"layer": -2})
    with pytest.raises(ValueError, match="size"):
        modality.encode(encoder, {"pixel_values": torch.randn(1, 3, 24, 24)})
    assert not any("forward" in vars(block) for block in Host(encoder).blocks())


def test_compiled_encoders_skip_too(tmp_path: Path) -> None:
    modality, encoder, values, _ = read(tmp_path, "clip", {"layer": -2})
    torch.compiler.reset()
    compiled = torch.compile(lambda pixels: modality.encode(encoder, {"pixel_values": pixels})[0], backend="eager")
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(compiled(pixels), values)
        whole = encoder(pixels, output_hidden_states=True).hidden_states
        assert torch.equal(compiled(pixels), values)
    assert torch.equal(whole[-2][:, 1:], values)
    assert not torch.equal(whole[-1], whole[-2])
