"""LaVIN's files in their variety: shards, prefixes, arguments, bases, Vicuna's delta; what is refused; and back."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmtune
from mmtune.convert.lavin_source import is_lavin
from mmtune.convert.run import convert
from mmtune.core.errors import CheckpointError, NotPossibleError, RecipeError, UsageError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "lavin" / "a" / "checkpoint"
ADAPTER = "adapter/checkpoint-19.pth"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "checkpoint"))


def adapter(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / ADAPTER, weights_only=False)
    return found


def change(folder: Path, alter: Callable[[dict[str, Any]], Any]) -> None:
    content = adapter(folder)
    changed = alter(content)
    torch.save(content if changed is None else changed, folder / ADAPTER)


def split_in_two(folder: Path) -> None:
    """LLaMA as two model-parallel shards."""
    place = folder / "llama" / "7B"
    whole = torch.load(place / "consolidated.00.pth", weights_only=True)
    columns = ("tok_embeddings", "wo", "w2")
    for number in range(2):
        shard: dict[str, Tensor] = {}
        for name, tensor in whole.items():
            kind = name.removesuffix(".weight").rpartition(".")[2]
            axis = 1 if kind in columns else 0
            sliced = tensor.dim() == 2 and "rope" not in name
            shard[name] = tensor.chunk(2, dim=axis)[number].clone() if sliced else tensor
        torch.save(shard, place / f"consolidated.{number:02d}.pth")


def weights(model: Any) -> dict[str, Tensor]:
    return dict(model.state_dict())


def test_shards_prefixes_and_kinds_of_files_make_no_difference(source: Path, tmp_path: Path) -> None:
    assert is_lavin(source)
    assert is_lavin(source / ADAPTER)
    assert not is_lavin(source / "llama" / "7B")
    first = convert(str(source), str(tmp_path / "first"))
    assert (first["from"], first["verified"]["greedy_equal"]) == ("lavin", True)
    split_in_two(source)

    def bare(content: dict[str, Any]) -> dict[str, Any]:
        plain = {name.removeprefix("module."): tensor for name, tensor in content["model"].items()}
        return {"model": plain, "args": vars(content["args"])}

    change(source, bare)
    options = {"llm": str(source / "llama" / "7B"), "vision": str(source / "clip" / "ViT-L-14.pt")}
    second = convert(str(source / ADAPTER), str(tmp_path / "second"), from_format="lavin", **options)
    assert second["verified"]["greedy_equal"]
    one, other = (weights(mmtune.load(tmp_path / name)[0]) for name in ("first", "second"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_settings_of_the_arguments_and_of_the_command(source: Path, tmp_path: Path) -> None:
    change(source, lambda content: setattr(content["args"], "adapter_scale", 0.5))
    convert(str(source), str(tmp_path / "a"), verify=False)
    settings = json.loads((tmp_path / "a" / "config.json").read_text())["settings"]
    assert (settings["scale"], settings["temperature"], settings["adapter_dim"], settings["hidden"]) == (0.5, 10, 8, 16)
    change(source, lambda content: content["model"])  # the state dict alone says neither
    found = convert(str(source), str(tmp_path / "b"), verify=False, settings={"lavin.scale": 2.0})
    assert "temperature" in found["notes"][0]
    settings = json.loads((tmp_path / "b" / "config.json").read_text())["settings"]
    assert (settings["scale"], settings["temperature"]) == (2.0, 10.0)
    given = {"lavin.temperature": 5, "lavin.routing": "batch0"}
    assert convert(str(source), str(tmp_path / "c"), settings=given)["verified"]["greedy_equal"]
    settings = json.loads((tmp_path / "c" / "config.json").read_text())["settings"]
    assert (settings["temperature"], settings["routing"]) == (5.0, "batch0")
    with pytest.raises(RecipeError, match="Did you mean 'temperature'"):
        convert(str(source), str(tmp_path / "d"), settings={"lavin.temprature": 5})


def test_vicuna_with_the_published_fault_and_without(source: Path, tmp_path: Path) -> None:
    """The delta's queries and keys are in Hugging Face's order, the published code adds them to Meta's."""
    convert(str(source), str(tmp_path / "plain"), verify=False)
    plain = mmtune.load(tmp_path / "plain")[0].language_model
    delta = {name: torch.randn_like(tensor) / 16 for name, tensor in plain.state_dict().items()}
    moved = {name: tensor.half() for name, tensor in delta.items()}
    plain.load_state_dict(moved)
    plain.half().save_pretrained(source / "llama" / "vicuna_7B")
    options = {"verify": False, "from_format": "lavin"}
    convert(str(source), str(tmp_path / "meant"), settings={"lavin.vicuna_legacy_delta": False}, **options)
    convert(str(source), str(tmp_path / "legacy"), settings={"lavin.vicuna_legacy_delta": True}, **options)
    base, meant, legacy = (
        mmtune.load(tmp_path / name)[0].language_model.state_dict() for name in ("plain", "meant", "legacy")
    )
    meta = torch.load(source / "llama" / "7B" / "consolidated.00.pth", weights_only=True)
    name = "model.layers.1.self_attn.q_proj.weight"
    wanted = meta["layers.1.attention.wq.weight"] + moved[name]  # [64, 64] in Meta's order, 4 heads
    wanted = wanted.view(4, 8, 2, 64).transpose(1, 2).reshape(64, 64)
    torch.testing.assert_close(legacy[name], wanted.float())
    torch.testing.assert_close(meant[name], (base[name].half() + moved[name]).float())
    value = "model.layers.1.self_attn.v_proj.weight"
    assert torch.equal(legacy[value], meant[value])


def remove_one(content: dict[str, Any]) -> None:
    del content["model"]["module.layers.1.adapter_attn.conv_B.bias"]


def add_one(content: dict[str, Any]) -> None:
    content["model"]["module.layers.7.adapter_attn.conv_A.bias"] = torch.zeros(8)


def widen_one(content: dict[str, Any]) -> None:
    content["model"]["module.layers.1.adapter_attn.conv_B.weight"] = torch.zeros(64, 5, 1)


def poison_one(content: dict[str, Any]) -> None:
    content["model"]["module.adapter_proj.conv_A.bias"][0] = float("nan")


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (remove_one, "layers.1.adapter_attn.conv_B.bias"),
        (add_one, "layers.7.adapter_attn.conv_A.bias"),
        (widen_one, "layers.1.adapter_attn.conv_B.weight"),
        (poison_one, "adapter_proj.conv_A.bias"),
        (lambda content: {"model": {}, "args": argparse.Namespace()}, "no tensor of an adapter"),
    ],
)
def test_wrong_tensors_are_named(
    source: Path, tmp_path: Path, alter: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change(source, alter)
    with pytest.raises(CheckpointError, match=message):
        convert(str(source), str(tmp_path / "out"), from_format="lavin", verify=False)
    assert not (tmp_path / "out").exists()


def test_what_no_published_model_has_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotPossibleError, match="mixed anew"):
        convert(str(source), str(tmp_path / "out"), to="merged")
    change(source, lambda content: setattr(content["args"], "visual_adapter_type", "normal"))
    with pytest.raises(NotPossibleError, match="visual_adapter_type"):
        convert(str(source), str(tmp_path / "out"))


def test_arguments_that_are_no_numbers_and_encoders_by_name_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one encoder"):
        convert(str(source), str(tmp_path / "out"), encoders={"vision_clip": "x"})
    change(source, lambda content: setattr(content["args"], "temperature", "hot"))
    with pytest.raises(CheckpointError, match="temperature 'hot'"):
        convert(str(source), str(tmp_path / "out"))


def test_a_base_that_is_not_there(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "llama")
    change(source, lambda content: setattr(content["args"], "llama_model_path", "./nowhere/"))
    with pytest.raises(CheckpointError, match="LLaMA was not found"):
        convert(str(source), str(tmp_path / "out"))


def test_back_to_the_original_bit_by_bit(source: Path, tmp_path: Path) -> None:
    convert(str(source), str(tmp_path / "model"), verify=False)
    found = convert(str(tmp_path / "model"), str(tmp_path / "back"), to="lavin")
    assert found["verified"]["greedy_equal"]
    written = torch.load(tmp_path / "back" / "checkpoint-19.pth", weights_only=False)
    original = adapter(source)
    assert written["model"].keys() == original["model"].keys()
    assert all(torch.equal(written["model"][name], tensor) for name, tensor in original["model"].items())
    said = {**vars(original["args"]), "n_prompt": 1}  # two blocks of the tower give one feature
    assert vars(written["args"]) == said


def test_a_truncated_clip_is_named(source: Path, tmp_path: Path) -> None:
    file = source / "clip" / "ViT-L-14.pt"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError) as caught:
        convert(str(source), str(tmp_path / "out"), from_format="lavin", verify=False)
    assert str(file) in str(caught.value.where)
