"""Bytes of a step by kind: quantised bases, moments in 8 bits, and what several processes share out."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmtune.core.errors import NotPossibleError
from mmtune.model.quantised import quantised_bytes
from mmtune.train.footprint import Memory, memory_of, moment_bytes, rows_of_process
from mmtune.train.model_setup import make_model
from mmtune.train.planning import planned
from mmtune.train.recipe import Recipe
from mmtune.train.rehearsal import Shape, rehearse
from tests.tiny import save_tiny_lm, save_tiny_vision
from tests.train.conftest import write_rows

Make = Callable[..., Recipe]
SHAPE = Shape(2, 64, 16)
META = torch.device("meta")


def memory(recipe: Recipe, precision: str = "bf16", kind: str = "cuda") -> Memory:
    model, _ = make_model(recipe, precision, META)
    return memory_of(recipe, precision, model, SHAPE, kind)[0]


def matrices_of_blocks(recipe: Recipe) -> list[torch.Tensor]:
    model, _ = make_model(recipe, "bf16", META)
    return [p for block in model.host.blocks() for p in block.parameters() if p.dim() == 2]


def test_bytes_of_quantised_matrices() -> None:
    assert quantised_bytes(4096, 11008, 8) == 4096 * 11008 + 4 * 4096
    four = quantised_bytes(4096, 11008, 4)
    assert 4.12 < 8 * four / (4096 * 11008) < 4.13  # 4 + 8/64 + 32/(64 * 256) bits a number: QLoRA, section 3
    assert quantised_bytes(3, 5, 4) == 8 + 1 + 4 + 4 * 273
    assert 8 * quantised_bytes(4096, 4096, 4, "torchao") == 5 * 4096**2  # 4 + (16 + 16)/32
    assert quantised_bytes(3, 5, 4, "torchao") == 5 * 8 * 1024 // 8  # whole tiles
    assert quantised_bytes(3, 5, 8, "torchao") == 3 * 5 + 3 * 4


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", ["llava", "multi_token", "vlora", "lavin"])
def test_a_quantised_base_is_smaller_by_its_matrices(bits: int, method: str, recipe: Make) -> None:
    plain, few = recipe(method, tune__kind="lora"), recipe(method, tune__kind="qlora", tune__bits=bits)
    replaced = matrices_of_blocks(recipe(method))
    saved = sum(2 * m.numel() - quantised_bytes(*m.shape, bits) for m in replaced)
    before, after = memory(plain), memory(few)
    assert before.weights - after.weights == saved
    assert after.optimizer == before.optimizer
    workspace = 2 * max(m.numel() for m in replaced)
    assert after.total - before.total == workspace - saved


def test_moments_in_8_bits() -> None:
    assert moment_bytes(4095, "adamw_8bit") == moment_bytes(4095, "adamw") == 8 * 4095
    assert moment_bytes(8192, "adamw_8bit") == 2 * (8192 + 4 * 32)


def test_shares_of_several_processes(recipe: Make) -> None:
    def of(processes: int, **changes: Any) -> Memory:
        return memory(recipe(tune__kind="full", run__num_processes=processes, **changes), "fp32")

    one, ddp, fsdp = of(1), of(4), of(4, run__strategy="fsdp")
    zero2, offloaded = of(4, run__strategy="zero2"), of(4, run__strategy="fsdp", run__offload=True)
    assert ddp == one
    assert fsdp.gradients == one.gradients // 4
    assert fsdp.optimizer == zero2.optimizer == one.optimizer // 4
    assert zero2.weights == one.weights
    assert fsdp.weights < of(2, run__strategy="fsdp").weights
    assert one.offloaded == 0
    assert offloaded.optimizer == offloaded.gradients == 0
    assert offloaded.offloaded > fsdp.optimizer + fsdp.gradients
    assert offloaded.weights < fsdp.weights


def test_rows_of_a_process(recipe: Make) -> None:
    assert rows_of_process(recipe(run__num_processes=2, train__batch_size=9), 9) == 5
    assert rows_of_process(recipe(run__num_processes=2, train__accumulation=4), 9) == 9


def test_the_process_itself_counts_on_the_cpu_alone(recipe: Make) -> None:
    here, there = memory(recipe(), "fp32", "cpu"), memory(recipe(), "fp32", "cuda")
    assert here.tensors == there.tensors == there.total
    assert here.total == here.tensors + here.libraries + here.holes
    assert there.libraries == there.holes == 0 < here.libraries
    plain = memory(recipe(tune__kind="lora"), "fp32", "cpu")
    again = memory(recipe(tune__kind="lora", train__gradient_checkpointing=True), "fp32", "cpu")
    assert again.activations < plain.activations
    assert again.holes == plain.holes  # blocks that run again pass through the heap too


def test_padding_and_packing_are_planned_with_their_masks(recipe: Make) -> None:
    model, _ = make_model(recipe(tune__kind="lora"), "fp32", META)
    blocks, full = len(model.host.blocks()), Shape(4, 96, 16)
    plain = rehearse(model, full)
    padded = rehearse(model, replace(full, padded=True))
    one = rehearse(model, Shape(1, 4 * 96, 16))
    packed = rehearse(model, Shape(1, 4 * 96, 16, packed=4))
    assert padded.activations - plain.activations >= 4 * blocks * 4 * 96**2  # a float32 of every pair in each block
    assert packed.activations - one.activations >= 4 * blocks * (4 * 96) ** 2
    assert padded.step_flops == plain.step_flops


def test_prepared_media_that_stay_are_planned(recipe: Make, tmp_path: Path) -> None:
    def media(**changes: Any) -> int:
        found: int = planned(recipe(data__cache=str(tmp_path), **changes), target="cpu")["memory"]["media"]
        return found

    model, _ = make_model(recipe(), "fp32", META)
    picture = model.modalities["image"].load(Image.new("RGB", (20, 16)))["pixel_values"].nbytes
    assert media() == 12 * picture  # 8 steps of 3 rows see each of the 12 rows twice
    assert media(train__max_steps=4) == 0
    assert media(data__cache_features=True) == 0


def test_qlora_is_planned_and_what_does_not_fit_says_what_to_change(recipe: Make, tmp_path: Path) -> None:
    found = planned(recipe(tune__kind="qlora", data__cache=str(tmp_path)), target="t4-16g")
    assert found["fits"]
    assert found["advice"] == []
    large = {"hidden_size": 8192, "num_hidden_layers": 12, "intermediate_size": 28672, "num_attention_heads": 64}
    folder = Path(save_tiny_lm(tmp_path / "large"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **large, "head_dim": 128, "num_key_value_heads": 64}))
    full = recipe(tune__kind="full", model__base=str(folder), data__cache=str(tmp_path))
    found = planned(full, target="t4-16g")
    assert not any(row["fits"] for row in found["devices"])
    assert found["advice"] == [
        "--set train.gradient_checkpointing=true", "--tune lora", "--num-processes 2 --set run.strategy=fsdp",
        "a smaller data.max_length",
    ]  # fmt: skip
    compiled = recipe(tune__kind="full", model__base=str(folder), train__compile=True, data__cache=str(tmp_path))
    assert "--set train.gradient_checkpointing=true" not in planned(compiled, target="t4-16g")["advice"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"run__strategy": "fsdp", "run__num_processes": 2, "tune__kind": "qlora"}, "Quantised"),
        ({"run__strategy": "zero3", "run__num_processes": 2, "tune__bits": 8}, "Quantised"),
        ({"run__offload": True}, "offload"),
        ({"train__compile": True, "train__gradient_checkpointing": True}, "compile"),
    ],
)
def test_what_a_run_refuses_is_not_planned(changes: dict[str, Any], word: str, recipe: Make) -> None:
    with pytest.raises(NotPossibleError, match=word):
        planned(recipe(**changes), target="h200")


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap of another C library was not measured")
@pytest.mark.parametrize("method", ["llava", "vlora"])
def test_a_run_takes_what_was_planned(method: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "head_dim": 64}
    base = save_tiny_lm(tmp_path / "lm", **sizes, num_key_value_heads=4, vocab_size=8000)
    vision = save_tiny_vision(tmp_path / "vision", hidden_size=192, intermediate_size=768, num_attention_heads=4)
    folder = tmp_path / "data"
    folder.mkdir()
    data = write_rows(folder, count=24, text_only=0)
    rows = json.loads(data.read_text())
    for row in rows:
        row["conversations"][0]["value"] += " Look" * 60
    data.write_text(json.dumps(rows))
    sets = ["train.max_steps=5", "train.epochs=9", "train.batch_size=8", "data.template=vicuna_v1", "run.device=cpu"]
    if method == "vlora":
        sets += ["model.settings={dim: 64, rank: 8, depth: 2, heads: 4, types: qkvom, every: 2}"]
    command = [sys.executable, "-m", "mmtune", "finetune", "--json", "-q", "--method", method, "--base", base]
    command += ["--vision", vision, "--data", str(data)]
    for one in sets:
        command += ["--set", one]
    ratios = []
    for index in range(3):  # equal runs differ by up to a tenth to either side: where holes come about is chance
        again = [*command, "--output", str(tmp_path / f"run-{index}")]
        done = subprocess.run(again, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["memory"]
        ratios.append(found["planned_bytes"] / found["measured_bytes"])
    assert 0.85 < statistics.median(ratios) < 1.15
