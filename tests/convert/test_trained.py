"""Freshly trained models, which no checkpoint of another system stands behind, leave in the original formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import mmtune
from mmtune.convert.run import convert
from mmtune.core.errors import NotPossibleError
from mmtune.model.build import build_model
from tests.tiny import save_tiny_lm

PICTURE = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 20).convert("RGB")
TINY = {"dim": 32, "depth": 1, "rank": 2, "types": "qm", "every": 2}


def make(folder: Path, method: str, **settings: object) -> Path:
    model, processor = build_model(method=method, settings=settings)
    torch.manual_seed(0)
    for parameter in model.method.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def logits(folder: Path) -> torch.Tensor:
    model, processor = mmtune.load(folder, device="cpu", attention="eager")
    with torch.no_grad():
        return model(**processor(text="<image>What is in this picture?", images=[PICTURE])).logits


@pytest.mark.parametrize(("method", "settings"), [("llava", {}), ("llava", {"projector": "linear"}), ("vlora", TINY)])
def test_there_and_back(tmp_path: Path, method: str, settings: dict[str, object]) -> None:
    source = make(tmp_path / "trained", method, **settings)
    result = convert(source, tmp_path / "original", to=method)
    assert (result["form"], result["verified"]["greedy_equal"]) == ("full", True)
    convert(tmp_path / "original", tmp_path / "back")
    assert torch.allclose(logits(tmp_path / "back"), logits(source), atol=1e-4)


@pytest.mark.parametrize("setting", [{"normalize_features": True}, {"placeholder": "none"}])
def test_what_vloras_code_does_not_have(tmp_path: Path, setting: dict[str, object]) -> None:
    source = make(tmp_path / "trained", "vlora", **TINY, **setting)
    with pytest.raises(NotPossibleError, match=next(iter(setting))):
        convert(source, tmp_path / "original", to="vlora")
    assert not (tmp_path / "original").exists()


@pytest.mark.parametrize("types", ["k", "qv"])
def test_vloras_code_knows_no_grouped_heads(tmp_path: Path, types: str) -> None:
    model, processor = build_model(
        base=save_tiny_lm(tmp_path / "lm"), method="vlora", settings={**TINY, "heads": 16, "types": types}
    )
    model.save_pretrained(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    with pytest.raises(NotPossibleError, match=rf"maps from 32 \(the hidden size\) to 32 alone; '{types[-1]}'"):
        convert(tmp_path / "trained", tmp_path / "original", to="vlora")
    assert not (tmp_path / "original").exists()


def test_the_bundled_model_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(NotPossibleError, match="normalize_features"):
        convert("nano", tmp_path / "original", to="vlora")
    assert convert("nano", tmp_path / "copy")["verified"]["greedy_equal"] is True
