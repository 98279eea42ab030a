"""Every preset trains on tiny random weights, with its own settings wherever they are not sizes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mmtune.core.errors import NotPossibleError
from mmtune.train.presets import list_presets, load_preset
from mmtune.train.recipe import dump, resolve
from mmtune.train.run import train
from tests.tiny import save_tiny_lm

PRESETS = sorted(list_presets())
SMALLER = {"vlora": {"dim": 32, "heads": 4, "rank": 4, "depth": 1, "every": 2}, "llava": {}, "lavin": {"hidden": 16}}


@pytest.fixture(scope="module")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny language model of four layers."""
    return save_tiny_lm(tmp_path_factory.mktemp("deep"), num_hidden_layers=4, num_key_value_heads=4)


def test_each_says_what_it_is_and_where_it_is_from() -> None:
    assert set(PRESETS) >= {
        "vlora-7b-pretrain", "vlora-7b-finetune", "llava-1.5-7b-pretrain", "llava-1.5-7b-finetune", "llava-1.5-7b-lora"
    }  # fmt: skip
    for name in PRESETS:
        values = load_preset(name)
        assert values["describe"]
        assert values["source"]
        assert resolve("finetune", preset=name.upper().replace("-", "_")).method == values["method"]


def test_published_numbers() -> None:
    pretrain = resolve("pretrain", preset="vlora-7b-pretrain")
    assert pretrain.train.batch_size * pretrain.train.accumulation == 768
    assert pretrain.train.learning_rate == {"default": 5e-5}
    lora = resolve("finetune", preset="llava-1.5-7b-lora")
    assert (lora.tune.rank, lora.tune.alpha, lora.train.roles) == (128, 256, ["method", "lora"])
    assert lora.train.learning_rate == {"default": 2e-4, "projector": 2e-5}
    full = resolve("finetune", preset="llava-1.5-7b-finetune")
    assert full.train.batch_size * full.train.accumulation == 128
    assert full.train.roles == ["method", "language"]


def test_published_numbers_of_lavin() -> None:
    for name in PRESETS:
        if not name.startswith("lavin-"):
            continue
        recipe = resolve("finetune", preset=name)
        step = recipe.train.batch_size * recipe.train.accumulation
        assert (step, recipe.train.learning_rate["default"]) == (32, pytest.approx(9e-3 * step / 256))
        assert (recipe.train.betas, recipe.train.weight_decay, recipe.data.max_length) == ((0.9, 0.95), 0.02, 511)
        assert recipe.model.settings["temperature"] == (5.0 if "13b" in name else 10.0)
        lite = name.endswith("-lite")
        assert (recipe.tune.bits, recipe.train.gradient_checkpointing) == ((4, True) if lite else (None, False))
        wanted = ("lavin", 15, 0.2) if "dialogue" in name else ("lavin_sqa", 20, 2)
        assert (recipe.data.template, recipe.train.epochs, recipe.train.warmup_epochs) == wanted


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains(
    name: str, deep_base: str, vision: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmtune.report.run.write_run_report", lambda folder, **shown: None)
    torch.set_num_threads(1)
    verb = "pretrain" if name.endswith("pretrain") else "finetune"
    method = str(load_preset(name)["method"])
    overrides = {
        "model.base": deep_base,
        "model.vision": vision,
        "model.settings": SMALLER[method],
        "data.train": [{"path": str(data)}],
        "train.epochs": 10,
        "train.max_steps": 2,
        "run.device": "cpu",
    }
    recipe = resolve(verb, preset=name, overrides=overrides, sets=["data.workers=0"])
    if recipe.tune.bits is not None and find_spec("bitsandbytes") is None:
        with pytest.raises(NotPossibleError, match="bits") as caught:
            train(recipe, verb=verb, output=tmp_path)
        assert caught.value.fix == 'pip install "mmtune[quant]"'
        return
    if recipe.data.template == "plain":
        recipe = resolve(verb, preset=name, overrides={**overrides, "data.train": [{"path": str(data), "limit": 10}]})
    result = train(recipe, verb=verb, output=tmp_path)
    assert result["steps"] == 2
    assert result["loss"]["last"] > 0
    again = resolve(verb, file=tmp_path / "recipe.yaml")
    assert dump(again) == (tmp_path / "recipe.yaml").read_text()
