"""Every preset trains on tiny random weights, with its own settings wherever they are not sizes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtune.core.errors import NotPossibleError
from mmtune.modalities import MODALITIES
from mmtune.testing.encoders import TINY_ENCODERS
from mmtune.train.presets import list_presets, load_preset
from mmtune.train.recipe import dump, resolve
from mmtune.train.run import train
from tests.convert.originals_multi_token import INSTRUCTION
from tests.tiny import save_tiny_lm

ALL_PRESETS = sorted(list_presets())
MULTI_TOKEN = [name for name in ALL_PRESETS if name.startswith("multi-token-7b-")]
PRESETS = [name for name in ALL_PRESETS if name not in MULTI_TOKEN]
SMALLER = {
    "vlora": {"dim": 32, "heads": 4, "rank": 4, "depth": 1, "every": 2}, "lavin": {"hidden": 16},
    "llava": {}, "multi_token": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny language model of four layers."""
    return save_tiny_lm(tmp_path_factory.mktemp("deep"), num_hidden_layers=4, num_key_value_heads=4)


def test_each_says_what_it_is_and_where_it_is_from() -> None:
    assert set(PRESETS) >= {
        "vlora-7b-pretrain", "vlora-7b-finetune", "llava-1.5-7b-pretrain", "llava-1.5-7b-finetune", "llava-1.5-7b-lora"
    }  # fmt: skip
    for name in ALL_PRESETS:
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
def test_a_preset_trains(name: str, deep_base: str, vision: str, data: Path, tmp_path: Path) -> None:
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


def test_published_numbers_of_multi_token() -> None:
    assert len(MULTI_TOKEN) == 16
    widths = {"audio-clap": 5, "imagebind": 4, "document-gte": 4, "document-gte-x16": 32, "vision-clip": None}
    for name in MULTI_TOKEN:
        recipe = resolve("finetune", preset=name)
        assert recipe.train.batch_size * recipe.train.accumulation == 32
        assert (recipe.train.learning_rate, recipe.train.epochs) == ({"default": 1e-5}, 1)
        builder, _, stage = name.removeprefix("multi-token-7b-").rpartition("-")
        ((modality, projector),) = recipe.model.settings["projectors"].items()
        assert modality in (recipe.model.encoders or {"image": None})
        assert projector.get("width") == widths.get(builder, 10)
        assert recipe.train.roles == (["method"] if stage == "pretrain" else ["method", "lora"])


@pytest.mark.parametrize("name", [name for name in MULTI_TOKEN if "imagebind" not in name])
def test_a_preset_of_multi_token_trains(name: str, vision: str, tmp_path: Path) -> None:
    base = Path(save_tiny_lm(tmp_path / "base"))
    (base / "chat_template.jinja").write_text(INSTRUCTION)
    values = load_preset(name)
    ((modality, _),) = values["model"]["settings"]["projectors"].items()
    kind = MODALITIES.load(modality)
    items: list[Any] = ["0.png", "1.png", "2.png"]
    encoder = {"model.vision": vision}
    for index, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20, 16), color).save(tmp_path / items[index])
    if modality != "image":
        made = TINY_ENCODERS[modality]
        encoder = {f"model.encoders.{modality}.source": made.save(tmp_path / "encoder")}
        items = [write_item(tmp_path / f"item{index}", item) for index, item in enumerate(made.items())]
    talk = [{"role": "user", "content": f"{kind.marker} What?"}, {"role": "assistant", "content": "That."}]
    rows = [{"messages": talk, kind.data_key: [item]} for item in items]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    overrides = {
        "model.base": str(base), **encoder, "data.train": [{"path": str(tmp_path / "rows.jsonl")}],
        "train.epochs": 40, "train.max_steps": 2, "run.device": "cpu",
    }  # fmt: skip
    verb = name.rpartition("-")[2]
    recipe = resolve(verb, preset=name, overrides=overrides, sets=["data.workers=0"])
    result = train(recipe, verb=verb, output=tmp_path / "run")
    assert result["steps"] == 2
    assert result["loss"]["last"] > 0


def write_item(path: Path, item: Any) -> Any:
    """An item as a row names it: bytes become a file, a text stands for itself."""
    if isinstance(item, bytes):
        path = path.with_suffix(".wav" if item[:4] == b"RIFF" else ".gif")
        path.write_bytes(item)
        return path.name
    return item["text"]
