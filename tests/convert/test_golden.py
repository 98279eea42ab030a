"""Converted golden checkpoints give the ids, logits, losses and answers of the original code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mmtune
from mmtune.convert.run import convert
from mmtune.convert.writer import sha256
from mmtune.data.sample import conversation
from tests.convert.conftest import SOURCES
from tests.convert.originals import LLAVA, VLORA
from tests.golden_logits import kept

Convert = Callable[[str], Path]
IMAGE = -200


def batch(inputs: dict[str, Tensor], placeholder: int, count: int) -> dict[str, Any]:
    """The originals' batch with ``count`` placeholders for each of their image ids, right padded."""
    rows = {"input_ids": [], "labels": [], "attention_mask": []}
    for ids, labels, mask in zip(inputs["input_ids"], inputs["labels"], inputs["attention_mask"], strict=True):
        repeats = torch.where(ids == IMAGE, count, 1) * mask.long()
        rows["input_ids"].append(torch.where(ids == IMAGE, placeholder, ids).repeat_interleave(repeats))
        rows["labels"].append(labels.repeat_interleave(repeats))
        rows["attention_mask"].append(mask.long().repeat_interleave(repeats))
    pads = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    made: dict[str, Any] = {
        key: torch.nn.utils.rnn.pad_sequence(value, batch_first=True, padding_value=pads[key])
        for key, value in rows.items()
    }
    owner = (inputs["input_ids"] == IMAGE).any(1).nonzero().squeeze(1)
    made["media"] = {"image": {"pixel_values": inputs["images"][owner], "owner": owner}}
    return made


@pytest.mark.parametrize(
    ("form", "inputs", "expected"),
    [
        ("llava-full", "inputs", "expected"),
        ("llava-lora", "inputs", "lora_expected"),
        ("llava-merged", "inputs", "lora_expected"),
        ("llava-stage1", "pretrain_inputs", "pretrain_expected"),
    ],
)
def test_llava_logits_and_loss(converted: Convert, form: str, inputs: str, expected: str) -> None:
    model, _ = mmtune.load(converted(form), device="cpu")
    wanted = load_file(LLAVA / f"{expected}.safetensors")
    given = batch(load_file(LLAVA / f"{inputs}.safetensors"), model.placeholder_ids["image"], 16)
    with torch.no_grad():
        output = model(**given)
    real = given["attention_mask"].bool()
    assert kept(output.logits).shape == wanted["logits"].shape
    assert (kept(output.logits) - wanted["logits"])[real].abs().max() <= 1e-4
    assert abs(output.loss - wanted["loss"]) <= 1e-5


def test_llava_answers(converted: Convert) -> None:
    model, processor = mmtune.load(converted("llava-full"), device="cpu")
    for row in json.loads((LLAVA / "generate.json").read_text()):
        media = {"image": [LLAVA / row["image"]]} if row["image"] else None
        text = "\n" + row["question"] if row["image"] else row["question"]
        prompt = processor.encode_prompt(conversation(text, media=media))
        wanted = [token for piece in row["input_ids"] for token in ([440] * 16 if piece == IMAGE else [piece])]
        assert prompt.input_ids == wanted
        made = processor.collate([prompt], side="left")
        made.pop("ids", None), made.pop("labels", None)
        new = model.generate(**made, max_new_tokens=24, do_sample=False)[0].tolist()
        assert new == row["output_ids"][1:]


@pytest.mark.parametrize("form", ["vlora-full", "vlora-stage1"])
@pytest.mark.parametrize("stage", ["sft", "pre"])
def test_vlora_logits_and_loss(converted: Convert, form: str, stage: str) -> None:
    model, _ = mmtune.load(converted(form), device="cpu", attention="eager")
    wanted = load_file(VLORA / "expected.safetensors")
    found = {
        name.removeprefix(f"{stage}."): value
        for name, value in load_file(VLORA / "inputs.safetensors").items()
        if name.startswith(stage)
    }
    given = batch(found, model.placeholder_ids["image"], 1)
    with torch.no_grad():
        output = model(**given)
    real = given["attention_mask"].bool()
    assert (kept(output.logits) - wanted[f"{stage}.logits"][:, : real.shape[1]])[real].abs().max() <= 5e-3
    assert abs(output.loss - wanted[f"{stage}.loss"]) <= 1e-4


def test_vlora_answers(converted: Convert) -> None:
    model, processor = mmtune.load(converted("vlora-full"), device="cpu", attention="eager")
    row = json.loads((VLORA / "e2e.json").read_text())
    wanted = load_file(VLORA / "expected.safetensors")
    prompt = processor.encode_prompt(conversation("\n" + row["question"], media={"image": [VLORA / row["image"]]}))
    assert prompt.input_ids == [384 if token == IMAGE else token for token in row["input_ids"]]
    made = processor.collate([prompt], side="left")
    made.pop("ids", None), made.pop("labels", None)
    for positions, name in (("original", "gen.cached.new_ids"), ("training", "gen.train_positions.new_ids")):
        new = model.generate(**made, positions=positions, max_new_tokens=24, do_sample=False)[0].tolist()
        assert new == wanted[name][0].tolist()
    assert processor.decode(row["new_ids"]) == row["answer"]


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[pytest.mark.afresh] * form.endswith("-full")) for form in SOURCES]
)
def test_verification(form: str, tmp_path: Path) -> None:
    source, options = SOURCES[form]
    result = convert(source, tmp_path / "out", **options)
    assert result["verified"]["greedy_equal"] is True
    assert result["verified"]["max_abs_logit_diff"] < (5e-3 if "vlora" in form else 1e-4)
    manifest = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(manifest["files"]) == files - {"MANIFEST.json"}
    assert all(sha256(tmp_path / "out" / name) == entry["sha256"] for name, entry in manifest["files"].items())


def test_equal_conversions_give_equal_bytes(converted: Convert, tmp_path: Path) -> None:
    convert(LLAVA / "llava_lora", tmp_path / "again", verify=False)
    first = converted("llava-lora")
    for path in sorted(first.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(first)).read_bytes(), path


def test_tensors_are_bit_equal(converted: Convert) -> None:
    source = load_file(LLAVA / "checkpoint" / "model.safetensors")
    language = load_file(converted("llava-full") / "language_model" / "model.safetensors")
    assert all(torch.equal(source[name], tensor) for name, tensor in language.items())
    stored = torch.load(VLORA / "adapter" / "mm_projector.bin", weights_only=True)["model.mm_projector.Bs"]
    adapter = load_file(converted("vlora-stage1") / "adapter.safetensors")
    together = torch.cat([adapter[f"delta_b.{kind}"] for kind in "qkvom"])
    assert torch.equal(together.flatten(), stored.flatten())
