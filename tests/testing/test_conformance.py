"""The shipped checks: the built-in methods and modality pass, and each kind of fault is found by its own property."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtune.core.errors import NotPossibleError, UsageError, VerificationError
from mmtune.methods import METHODS
from mmtune.methods.base import Method
from mmtune.modalities import MODALITIES
from mmtune.modalities.image import ImageModality
from mmtune.testing import check_method, check_modality
from mmtune.testing.bench import pictures
from mmtune.testing.encoders import TINY_ENCODERS
from tests.testing import methods
from tests.tiny import save_tiny_lm, save_tiny_vision

SMALL: dict[str, Any] = {"rank": 4, "dim": 32, "depth": 1, "heads": 2, "every": 2}

ALL_FOUR: list[tuple[str, dict[str, Any]]] = [
    ("llava", {}),
    ("lavin", {}),
    ("multi_token", {}),
    ("vlora", {**SMALL, "alpha": 4}),
]


@pytest.fixture(autouse=True)
def clean_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks register what they are given; the next test shall not see it."""
    monkeypatch.setattr(METHODS, "_loaded", dict(METHODS._loaded))
    monkeypatch.setattr(MODALITIES, "_loaded", dict(MODALITIES._loaded))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("llava", {}),
        ("llava", {"projector": "linear"}),
        ("lavin", None),
        ("lavin", {"adapter_dim": 4, "scale": 0.5, "hidden": 8}),
        ("multi_token", None),
        ("vlora", None),
        ("vlora", {**SMALL, "placeholder": "none", "types": "qv", "every": 1}),
        ("vlora", {**SMALL, "separate": False, "types": "qkvom", "alpha": None}),
        (methods.Gist, {"rank": 3}),
    ],
)
def test_methods_conform(method: str | type[Method], settings: dict[str, Any] | None) -> None:
    report = check_method(method, settings)
    assert len(report.findings) == 10
    assert "properties hold" in str(report)


FAMILIES = ["mistral", "qwen2", "qwen3", "gemma", "phi3", "gpt_neox", "opt"]
MORE_FAMILIES = [
    "gemma3_text",
    "phi",
    "gpt2",
    "falcon",
    "olmo2",
    "smollm3",
    "granite",
    "cohere",
    "starcoder2",
    "stablelm",
]
SINGLE_PRECISION = ["gemma2", "bloom", "mpt", "xglm", "mixtral"]  # they cannot compute in float64


# To a language model its patches are those of llava; its vectors are checked with the method's own tests.
SLOW_MULTI_TOKEN = [
    pytest.param(name, settings, marks=[pytest.mark.slow] * (name == "multi_token")) for name, settings in ALL_FOUR
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("method", "settings"), SLOW_MULTI_TOKEN)
def test_methods_conform_on_other_language_models(family: str, method: str, settings: dict[str, Any]) -> None:
    check_method(method, settings, language_model=family)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*MORE_FAMILIES, *SINGLE_PRECISION])
@pytest.mark.parametrize(("method", "settings"), ALL_FOUR)
def test_methods_conform_on_many_language_models(family: str, method: str, settings: dict[str, Any]) -> None:
    if (family, method) == ("olmo2", "lavin"):
        with pytest.raises(NotPossibleError, match="normalises after attention"):
            check_method(method, settings, language_model=family)
        return
    dtype = torch.float32 if family in SINGLE_PRECISION else torch.float64
    check_method(method, settings, language_model=family, dtype=dtype)


@pytest.mark.parametrize(("method", "settings"), ALL_FOUR)
def test_embeddings_may_be_narrower_than_the_layers(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """As in OPT 350m, whose embeddings are projected to the width of its layers."""
    base = save_tiny_lm(tmp_path, "opt", word_embed_proj_dim=16)
    check_method(method, settings, language_model=base)


@pytest.mark.parametrize(
    ("method", "broken"),
    [
        (methods.NotNeutral, "neutral at the start"),
        (methods.Blind, "perception reaches the model"),
        (methods.Leaky, "text-only rows"),
        (methods.Stalling, "text-only rows"),
        (methods.OneEach, "ragged media"),
        (methods.Ordered, "ragged media"),
        (methods.Padded, "padding"),
        (methods.Counting, "gradient checkpointing"),
        (methods.Forgetful, "save and load"),
        (methods.Uncached, "cached generation"),
        (methods.Tiling, "batched beams"),
    ],
)
def test_faults_are_named(method: type[Method], broken: str) -> None:
    with pytest.raises(VerificationError, match=rf"{method.name} breaks '{broken}'") as caught:
        check_method(method)
    assert caught.value.exit_code == 7
    assert caught.value.fix


@pytest.mark.parametrize("kind", ["siglip", "dinov2"])
@pytest.mark.parametrize(("method", "settings"), ALL_FOUR)
def test_methods_conform_on_other_encoders(kind: str, method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    check_method(method, settings, encoders={"image": save_tiny_vision(tmp_path, kind)})


@pytest.mark.parametrize("method", ["llava", "multi_token"])
def test_methods_conform_with_every_kind_of_media_in_one_batch(method: str, tmp_path: Path) -> None:
    """A row shows an item of each, two of each, or none."""
    kinds = ("audio", "document", "embedding", "video")
    encoders = {name: TINY_ENCODERS[name].save(tmp_path / name) for name in kinds}
    items = {name: TINY_ENCODERS[name].items() for name in kinds}
    check_method(
        method,
        encoders={"image": save_tiny_vision(tmp_path / "image"), **encoders},
        items={"image": pictures(), **items},
    )


@pytest.mark.parametrize("name", sorted(TINY_ENCODERS))
def test_modalities_conform_with_multi_token(name: str) -> None:
    check_modality(name, method="multi_token")


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_encoders_conform(kind: str, tmp_path: Path) -> None:
    report = check_modality("image", source=save_tiny_vision(tmp_path, kind), settings={"aspect": "square"})
    assert len(report.findings) == 17


def test_tiles_conform() -> None:
    """Pictures of unequal length, with line breaks between their rows."""
    settings = {"aspect": "anyres", "pinpoints": [[16, 32], [32, 16], [32, 32]]}
    check_modality("image", settings=settings)


class Careless(ImageModality):
    """Announces one position too many."""

    def positions(self, raw: Any) -> int:
        return super().positions(raw) + 1


class Nervous(ImageModality):
    """Adds noise to what it loads."""

    def load(self, item: Any) -> dict[str, Tensor]:
        return {key: value + torch.rand(()) for key, value in super().load(item).items()}


class Shallow(ImageModality):
    """Shows less of the encoder by a blank picture than it reads of others."""

    def blank(self) -> dict[str, Tensor]:
        return {**super().blank(), "is_blank": torch.ones(())}

    def encode(self, encoder: Any, inputs: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        values, mask, breaks = super().encode(encoder, inputs)
        return values if "is_blank" in inputs else values + encoder.post_layernorm.bias, mask, breaks


class Forgiving(ImageModality):
    """Puts a grey picture in the place of a missing one."""

    def load(self, item: Any) -> dict[str, Tensor]:
        return {"pixel_values": torch.zeros(3, 16, 16)} if isinstance(item, str) else super().load(item)


class Mingling(ImageModality):
    """Normalises over the batch."""

    def encode(self, encoder: Any, inputs: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        values, mask, breaks = super().encode(encoder, inputs)
        return values - values.mean(0), mask, breaks


@pytest.mark.parametrize(
    ("modality", "broken"),
    [
        (Careless, "positions"),
        (Nervous, "loading"),
        (Forgiving, "missing items"),
        (Mingling, "items in a batch"),
        (Shallow, "blank item"),
    ],
)
def test_faults_of_a_modality_are_named(modality: type[ImageModality], broken: str) -> None:
    with pytest.raises(VerificationError, match=f"image breaks '{broken}'"):
        check_modality(modality)


def test_other_modalities_need_an_encoder() -> None:
    class Sonar(ImageModality):
        name = "sonar"

    with pytest.raises(UsageError, match="'sonar' needs an encoder and three items"):
        check_modality(Sonar)
