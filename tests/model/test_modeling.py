"""The model class: Auto classes, Trainer, PEFT, generation, files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

import mmtune
from mmtune.core.errors import CheckpointError, ResourceError, ShapeError, UsageError
from mmtune.data.sample import Media, Sample, Text, Turn
from mmtune.model.build import build_model
from tests.tiny import save_tiny_lm, save_tiny_vision

SETTINGS: dict[str, dict[str, Any]] = {
    "llava": {},
    "lavin": {"dropout": 0.0, "hidden": 8},
    "vlora": {"rank": 4, "dim": 32, "depth": 1, "heads": 4, "every": 1},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("parts")
    return save_tiny_lm(folder / "llm"), save_tiny_vision(folder / "vision")


def build(parts: tuple[str, str], method: str, **options: Any) -> tuple[Any, Any]:
    settings = {**SETTINGS[method], **options}
    return mmtune.build_model(
        base=parts[0], encoders={"image": parts[1]}, method=method, settings=settings, template="vlora"
    )


def sample(name: str, *colors: str, text: str = "what is it?", answer: str = "a box") -> Sample:
    media = tuple(Media("image", Image.new("RGB", (20, 20), color)) for color in colors)
    return Sample(name, (Turn("user", (*media, Text(text))), Turn("assistant", (Text(answer),))))


def batch_of(processor: Any, *samples: Sample, side: str = "right") -> dict[str, Any]:
    batch = processor.collate([processor.encode(item) for item in samples], side=side)
    batch.pop("ids", None)
    return dict(batch)


def move(model: Any) -> None:
    """Give the method random weights, so that perception matters."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("method", SETTINGS)
def test_auto_classes_load_what_was_saved(parts: tuple[str, str], method: str, tmp_path: Path) -> None:
    model, processor = build(parts, method)
    move(model)
    model.save_pretrained(str(tmp_path))
    processor.save_pretrained(tmp_path)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(found) is mmtune.MMTuneModel
    assert type(AutoModel.from_pretrained(tmp_path)) is mmtune.MMTuneModel
    batch = AutoProcessor.from_pretrained(tmp_path)(
        text=["<image>\nUSER: hi ASSISTANT:"], images=[Image.new("RGB", (9, 9))]
    )
    batch.pop("ids", None)
    with torch.no_grad():
        assert torch.equal(found(**batch).logits, model.eval()(**batch).logits)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []  # nothing but what was trained


@pytest.mark.parametrize("method", SETTINGS)
def test_trainer_trains_it(parts: tuple[str, str], method: str, tmp_path: Path) -> None:
    model, processor = build(parts, method)
    model.set_trainable(["method"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = [
        processor.encode(sample(str(i), "red" if i % 2 else "blue", answer="red" if i % 2 else "blue"))
        for i in range(8)
    ]

    def collate(items: list[Any]) -> dict[str, Any]:
        batch = processor.collate(items)
        batch.pop("ids", None)
        return dict(batch)

    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        remove_unused_columns=False,
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("method.") for name in moved)


@pytest.mark.parametrize("method", SETTINGS)
def test_peft_wraps_the_whole_model(parts: tuple[str, str], method: str) -> None:
    model, processor = build(parts, method)
    move(model)
    batch = batch_of(processor, sample("a", "red"), sample("b"))
    with torch.no_grad():
        expected = model.eval()(**batch).logits
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=r"language_model\..*(q_proj|v_proj)"))
    with torch.no_grad():
        assert torch.allclose(wrapped.eval()(**batch).logits, expected, atol=1e-5)
    wrapped.train()
    wrapped(**batch).loss.backward()
    assert any(parameter.grad is not None for name, parameter in wrapped.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("method", SETTINGS)
def test_lora_is_saved_in_peft_format_and_never_on_the_encoder(
    parts: tuple[str, str], method: str, tmp_path: Path
) -> None:
    model, processor = build(parts, method)
    model.add_lora(rank=2)
    with torch.no_grad():
        for parameter in model.roles()["lora"]:
            parameter.normal_()
    assert not [name for name, _ in model.encoders.named_parameters() if "lora" in name]
    model.save_pretrained(str(tmp_path))
    processor.save_pretrained(tmp_path)
    again, _ = mmtune.load(tmp_path)
    batch = batch_of(processor, sample("a", "red"))
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)
    assert json.loads((tmp_path / "lora/adapter_config.json").read_text())["r"] == 2
    names = set(load_file(tmp_path / "lora/adapter_model.safetensors"))
    assert all(name.startswith("base_model.model.") for name in names)


def test_roles_and_freezing(parts: tuple[str, str]) -> None:
    model, _ = build(parts, "vlora")
    model.set_trainable(["delta_b"])
    rows = {row["component"]: row for row in model.describe()}
    assert rows["delta_b"]["trainable"] == rows["delta_b"]["parameters"] > 0
    assert rows["generator"]["trainable"] == rows["language"]["trainable"] == rows["encoder.image"]["trainable"] == 0
    with pytest.raises(UsageError, match="Did you mean 'delta_b'"):
        model.set_trainable(["deltab"])
    with pytest.raises(UsageError, match="no parameters"):
        model.set_trainable(["lora"])


def test_tuned_language_model_and_encoder_travel(parts: tuple[str, str], tmp_path: Path) -> None:
    model, processor = build(parts, "llava")
    model.set_trainable(["method", "language", "encoder"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(str(tmp_path / "first"))
    processor.save_pretrained(tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "second")
    again, _ = mmtune.load(tmp_path / "second")
    batch = batch_of(processor, sample("a", "red"))
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)


@pytest.mark.parametrize("method", SETTINGS)
def test_damaged_checkpoints_are_named(parts: tuple[str, str], method: str, tmp_path: Path) -> None:
    model, processor = build(parts, method)
    model.save_pretrained(str(tmp_path / "good"))
    processor.save_pretrained(tmp_path / "good")
    weights = load_file(tmp_path / "good/adapter.safetensors")
    name = sorted(weights)[0]
    cases = {
        "missing " + name: {key: value for key, value in weights.items() if key != name},
        "unexpected stranger": {**weights, "stranger": torch.zeros(1)},
        "settings ask for": {**weights, name: torch.zeros(3, 3, 3)},
    }
    for words, content in cases.items():
        folder = shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
        save_file(content, folder / "adapter.safetensors")
        with pytest.raises(CheckpointError, match=words):
            mmtune.load(folder)
    (tmp_path / "bad/adapter.safetensors").write_bytes((tmp_path / "good/adapter.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        mmtune.load(tmp_path / "bad")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        mmtune.load(tmp_path)


def test_another_base_is_noticed(parts: tuple[str, str], tmp_path: Path) -> None:
    base = shutil.copytree(parts[0], tmp_path / "llm")
    model, processor = mmtune.build_model(
        base=str(base), encoders={"image": parts[1]}, method="llava", template="vlora"
    )
    model.save_pretrained(str(tmp_path / "model"))
    processor.save_pretrained(tmp_path / "model")
    save_tiny_lm(base, seed=5)
    with pytest.raises(CheckpointError, match="not the one this checkpoint was trained on"):
        mmtune.load(tmp_path / "model")


def test_placeholders_without_media_and_wrong_counts(parts: tuple[str, str]) -> None:
    model, processor = build(parts, "llava")
    batch = batch_of(processor, sample("a", "red", "blue"))
    with pytest.raises(ShapeError, match="no media came with it"):
        model(**{**batch, "media": None})
    short = {key: value[:1] for key, value in batch["media"]["image"].items()}
    with pytest.raises(ShapeError, match="placeholder positions"):
        model(**{**batch, "media": {"image": short}})


def test_a_batch_without_media_touches_every_parameter(parts: tuple[str, str]) -> None:
    model, processor = build(parts, "vlora")
    model.set_trainable(["method"])
    model.train()
    model(**batch_of(processor, sample("a"), sample("b"))).loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.method.parameters())


def test_loss_is_normalised_by_the_given_number_of_targets(parts: tuple[str, str]) -> None:
    model, processor = build(parts, "llava")
    batch = batch_of(processor, sample("a", "red"), sample("b", answer="a much longer answer"))
    targets = int((batch["labels"][:, 1:] != -100).sum())
    with torch.no_grad():
        mean, total = model(**batch).loss, model(**batch, num_items_in_batch=1).loss
    assert float(total) == pytest.approx(float(mean) * targets, rel=1e-5)


@pytest.mark.parametrize("method", SETTINGS)
def test_generate_refuses_unknown_positions(parts: tuple[str, str], method: str) -> None:
    model, _ = build(parts, method)
    with pytest.raises(UsageError, match="training, original"):
        model.generate(torch.tensor([[1, 5]]), positions="other")


def test_vlora_without_placeholder_and_with_several_pictures(parts: tuple[str, str]) -> None:
    model, processor = build(parts, "vlora", placeholder="none")
    move(model)
    model.eval()
    one, two = (batch_of(processor, sample("a", *colors)) for colors in (("red",), ("red", "blue")))
    with torch.no_grad():
        first, second = model(**one).logits, model(**two).logits
    assert int(one["input_ids"].max()) < model.host.vocab_size  # no position stands for a picture
    assert not torch.allclose(first[:, -1], second[:, -1])


def test_one_generator_for_all_types(parts: tuple[str, str]) -> None:
    model, processor = build(parts, "vlora", separate=False)
    move(model)
    with torch.no_grad():
        assert torch.isfinite(model(**batch_of(processor, sample("a", "red"))).loss)


@pytest.mark.parametrize(("key", "value"), [("types", "qx"), ("types", "qq"), ("every", 99)])
def test_vlora_settings_are_checked(parts: tuple[str, str], key: str, value: object) -> None:
    with pytest.raises(UsageError) as error:
        build(parts, "vlora", **{key: value})
    assert error.value.where == f"model.settings.{key}"


@pytest.mark.parametrize("part", ["base", "encoder"])
def test_what_the_hub_would_have_to_give_is_a_resource(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    base, vision = save_tiny_lm(tmp_path / "lm"), save_tiny_vision(tmp_path / "vision")
    with pytest.raises(ResourceError, match="no folder here"):
        build_model(
            base="no-such/model" if part == "base" else base,
            encoders={"image": "no-such/model" if part == "encoder" else vision},
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="can be read from"):
        build_model(
            base=str(tmp_path / "empty") if part == "base" else base,
            encoders={"image": str(tmp_path / "empty") if part == "encoder" else vision},
        )
