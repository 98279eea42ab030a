"""What nobody reads in an encoder stays as it is, whatever is said to be trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune.model.build import META, build_model
from mmtune.testing.bench import open_bench
from mmtune.testing.encoders import TINY_ENCODERS
from tests.tiny import save_tiny_lm, save_tiny_vision

LAST = {"clip": "encoder.layers.2", "siglip": "encoder.layers.2", "dinov2": "encoder.layer.2"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_lm(tmp_path_factory.mktemp("base"))


def frozen(base: str, name: str, source: str, method: str = "llava", **options: Any) -> dict[str, bool]:
    """Names of what is said to be trained, and whether it is not."""
    settings = options.pop("settings", {})
    entry = {name: {"source": source, "settings": settings}}
    model, _ = build_model(base=base, encoders=entry, method=method, template="vlora", **options)
    model.set_trainable(["method", "encoder"])
    parts = (*model.encoders[name].named_parameters(), *model.method.named_parameters())
    return {key: not parameter.requires_grad for key, parameter in parts}


@pytest.mark.parametrize("family", LAST)
def test_blocks_behind_the_last_one_that_is_read(base: str, family: str, tmp_path: Path) -> None:
    found = frozen(base, "image", save_tiny_vision(tmp_path, family))
    last = {name for name in found if name.startswith(f"{LAST[family]}.")}
    assert last
    assert all(found[name] for name in last)
    before = LAST[family].replace("2", "1")
    assert not any(found[name] for name in found if name.startswith(f"{before}."))
    assert not any(found[name] for name in found if name.startswith("projector."))


@pytest.mark.parametrize(
    ("settings", "unread"),
    [
        ({"select": "pool"}, set()),
        ({"layer": -1}, {"post_layernorm.weight", "post_layernorm.bias"}),
    ],
)
def test_what_is_read_goes_by_the_settings(
    base: str, settings: Mapping[str, Any], unread: set[str], tmp_path: Path
) -> None:
    found = frozen(base, "image", save_tiny_vision(tmp_path), settings=settings)
    assert {name for name, is_frozen in found.items() if is_frozen} == unread


@pytest.mark.parametrize(
    ("name", "part"),
    [("audio", "decoder."), ("video_xclip", "text_model."), ("document", "pooler."), ("audio_whisper", None)],
)
def test_halves_and_heads_that_nobody_reads(base: str, name: str, part: str | None, tmp_path: Path) -> None:
    found = frozen(base, name, TINY_ENCODERS[name].save(tmp_path), method="multi-token")
    assert any(found.values()) == (part is not None)
    if part is not None:
        assert all(is_frozen for key, is_frozen in found.items() if key.startswith(part))


def test_a_plan_without_weights_counts_the_same(base: str, tmp_path: Path) -> None:
    source = save_tiny_vision(tmp_path)
    assert frozen(base, "image", source, device=str(META)) == frozen(base, "image", source)
    document = TINY_ENCODERS["document"].save(tmp_path / "document")  # decides by values: planned as if all were read
    assert not any(frozen(base, "document", document, method="multi-token", device=str(META)).values())


def test_adapters_inside_of_blocks_that_are_not_read(base: str, tmp_path: Path) -> None:
    """Three blocks, of which every second one is tapped."""
    found = frozen(base, "image", save_tiny_vision(tmp_path), method="lavin", settings={"tap_every": 2})
    adapters = {name for name, is_frozen in found.items() if is_frozen and name.startswith("adapters.")}
    assert adapters == {name for name in found if name.startswith("adapters.image.2.")}


def test_a_trained_encoder_has_gradients_wherever_rows_have_none() -> None:
    """In one process as in a team: what a batch does not reach has a gradient of zero."""
    with open_bench("llava", dtype=torch.float32) as bench:
        bench.model.set_trainable(["method", "encoder"])
        bench.model.train()
        trained = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]
        for rows in ([bench.row(0, [0])], [bench.row(1, [])]):
            bench.model.zero_grad(set_to_none=True)
            bench.model(**bench.batch(rows)).loss.backward()
            assert all(parameter.grad is not None for parameter in trained)
