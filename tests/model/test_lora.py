"""LoRA goes where it is told to and nowhere else, and comes back from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune.core.errors import UsageError
from mmtune.model.build import build_model, load
from mmtune.model.lora import parts_with_lora
from mmtune.model.modeling import MMTuneModel
from tests.tiny import save_tiny_lm, save_tiny_vision


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sources")
    vision = save_tiny_vision(folder / "vision")
    return {"base": save_tiny_lm(folder / "base"), "encoders": {"image": vision}}


def make(sources: dict[str, Any]) -> MMTuneModel:
    return build_model(**sources, method="llava", template="vicuna_v1")[0]


def moved(model: MMTuneModel) -> MMTuneModel:
    """The model with LoRA that does something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.roles()["lora"]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def answer(model: MMTuneModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of some text, and what the encoder sees of a picture."""
    model.eval()
    torch.manual_seed(0)
    encoder = model.encoders["image"]
    size = encoder.config.image_size
    with torch.no_grad():
        seen = encoder(torch.randn(1, 3, size, size)).last_hidden_state
        return model(torch.arange(1, 9).unsqueeze(0)).logits, seen


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        ("language-linear", ["language_model"]),
        ("encoder-linear", ["encoders.image"]),
        (["language-linear", "encoder-linear"], ["language_model", "encoders.image"]),
        (["q_proj"], ["language_model"]),
    ],
)
def test_targets(targets: str | list[str], parts: list[str], sources: dict[str, Any]) -> None:
    model = make(sources)
    model.add_lora(rank=2, targets=targets)
    assert parts_with_lora(model) == parts
    model.set_trainable(["lora"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name and name.startswith(tuple(parts)) for name in trained)
    if targets == ["q_proj"]:
        assert all(".q_proj." in name for name in trained)
    roles = model.roles()
    assert not {id(p) for p in roles["lora"]} & {id(p) for p in (*roles["language"], *roles["encoder"])}


def test_an_unknown_target_is_refused(sources: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"Unknown LoRA target 'language-liner'"):
        make(sources).add_lora(targets="language-liner")


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_a_save_brings_back_every_part(
    options: dict[str, bool], owned: bool, sources: dict[str, Any], tmp_path: Path
) -> None:
    model = make(sources)
    model.add_lora(rank=2, alpha=8, targets=["language-linear", "encoder-linear"], **options)
    plain = answer(make(sources))
    if owned:  # base and encoder travel with the save, without what LoRA put into them
        model.owns_language_model, model.owned_encoders = True, {"image"}
    expected = answer(moved(model))
    processor = build_model(**sources, method="llava", template="vicuna_v1")[1]
    model.save_pretrained(str(tmp_path))
    processor.save_pretrained(str(tmp_path))
    assert (tmp_path / "lora/adapter_model.safetensors").is_file()
    assert (tmp_path / "encoder_lora/image/adapter_model.safetensors").is_file()
    found = answer(load(tmp_path, device="cpu")[0])
    for ours, theirs, base in zip(found, expected, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
        assert (ours - base).abs().max() > 1e-3
    torch.testing.assert_close(answer(model)[0], expected[0], atol=0, rtol=0)  # saving leaves the model as it was
