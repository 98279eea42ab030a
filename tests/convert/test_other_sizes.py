"""Checkpoints of other sizes and options in the original layouts; the verifier compares each with its source."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmtune
from mmtune.convert.run import convert
from tests.convert.originals import LLM, make_llava, make_vlora, read_json, write_json

FINE_PINPOINTS = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": "[[28, 56], [56, 28], [56, 56], [84, 28]]"}


@pytest.mark.parametrize(
    "options",
    [
        {"projector": "linear", "config": {"mm_vision_select_layer": -3, "image_aspect_ratio": "square"}},
        {"projector": "mlp3x_gelu", "pickled": True, "shards": 3},
        {"projector": "mlp1x_gelu", "shards": 2, "config": {"mm_vision_select_feature": "cls_patch"}},
        {"projector": "identity", "clip": {"hidden_size": 48}},
        {"llm": {"num_key_value_heads": 6, "tie_word_embeddings": True}, "inside": False},
        {"mistral": True, "dtype": torch.bfloat16},
        {"dtype": torch.float16, "pickled": True},
        {"config": {"unfreeze_mm_vision_tower": True}},
    ],
    ids=["linear-square", "mlp3-bin-shards", "mlp1-cls", "identity", "tied", "mistral-bf16", "fp16-bin", "own-tower"],
)
def test_llava(tmp_path: Path, options: dict[str, Any]) -> None:
    source = make_llava(tmp_path, **options)
    result = convert(source, tmp_path / "out")
    assert result["verified"]["greedy_equal"] is True
    assert result["verified"]["max_abs_logit_diff"] < 1e-3
    model, _ = mmtune.load(tmp_path / "out", device="cpu")
    assert model.config.settings["projector"] == options.get("projector", "mlp2x_gelu")
    assert str(options.get("dtype", torch.float32)).endswith(read_json(tmp_path / "out" / "config.json")["dtype"])


@pytest.mark.parametrize("merge", ["spatial_unpad", "spatial", "flat"])
def test_llava_with_tiles(tmp_path: Path, merge: str) -> None:
    extra = {"model.image_newline": torch.randn(48)} if merge == "spatial_unpad" else {}
    source = make_llava(tmp_path, config={**FINE_PINPOINTS, "mm_patch_merge_type": merge}, extra=extra)
    assert convert(source, tmp_path / "out")["verified"]["greedy_equal"] is True


@pytest.mark.parametrize(
    "options",
    [
        {"types": "qkvo", "separate": False, "alpha": None},
        {"types": "qom", "llm": {"num_key_value_heads": 2}, "depth": 2},
        {"types": "m", "every": 3, "rank": 1, "pickled": True, "shards": 3},
        {"separate": False, "every": 2, "llm": {"num_hidden_layers": 4}, "shards": 2},
    ],
    ids=["one-generator", "grouped-heads", "bin-shards", "every-second"],
)
def test_vlora(tmp_path: Path, options: dict[str, Any]) -> None:
    result = convert(make_vlora(tmp_path, **options), tmp_path / "out")
    assert result["verified"]["greedy_equal"] is True
    settings = read_json(tmp_path / "out" / "config.json")["settings"]
    assert settings["types"] == options.get("types", "qkvom")
    assert settings["separate"] is options.get("separate", True)
    assert settings["alpha"] == options.get("alpha", 6)


def test_vlora_adapter_with_its_base(tmp_path: Path) -> None:
    source = make_vlora(tmp_path, adapter_only=True)
    result = convert(source, tmp_path / "out", llm=str(tmp_path / "llm"))
    assert result["form"] == "projector"
    assert result["verified"]["greedy_equal"] is True


def test_base_is_found_beside_the_checkpoint(tmp_path: Path) -> None:
    source = make_vlora(tmp_path, adapter_only=True, config={"_name_or_path": "llm"})
    assert convert(source, tmp_path / "out", verify=False)["form"] == "projector"


def test_shards_and_dtype_of_the_written_folder(tmp_path: Path) -> None:
    source = make_llava(tmp_path)
    result = convert(source, tmp_path / "out", max_shard_size="60KB", dtype="bfloat16")
    assert result["verified"]["greedy_equal"] is True
    folder = tmp_path / "out" / "language_model"
    index = read_json(folder / "model.safetensors.index.json")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert {path.name for path in files} == set(index["weight_map"].values())
    state = {name: tensor for path in files for name, tensor in load_file(path).items()}
    original = load_file(source / "model.safetensors")
    assert all(torch.equal(tensor, original[name].bfloat16()) for name, tensor in state.items())


def test_tower_from_inside_when_its_path_is_gone(tmp_path: Path) -> None:
    source = make_llava(tmp_path, config={"mm_vision_tower": "gone"}, clip={"hidden_act": "quick_gelu"})
    result = convert(source, tmp_path / "out", settings={"vision.num_attention_heads": 3})
    assert result["verified"]["greedy_equal"] is True
    assert any("inside the checkpoint" in note for note in result["notes"])


def test_vision_option_comes_first(tmp_path: Path) -> None:
    source = make_llava(tmp_path, config={"mm_vision_tower": "gone"})
    result = convert(source, tmp_path / "out", vision=str(tmp_path / "tower"))
    assert result["verified"]["greedy_equal"] is True
    assert result["notes"] == []


def test_projector_beside_a_plain_language_model(tmp_path: Path) -> None:
    """Released folders also carry mm_projector.bin; with a projector in the main weights it is the same one."""
    source = make_llava(tmp_path, projector="linear")
    state = load_file(source / "model.safetensors")
    projector = {name: state.pop(name) for name in list(state) if "mm_projector" in name}
    torch.save(projector, source / "mm_projector.bin")
    (source / "model.safetensors").unlink()
    torch.save(state, source / "pytorch_model.bin")
    assert convert(source, tmp_path / "out")["verified"]["greedy_equal"] is True


def test_the_name_of_the_folder_does_not_matter(tmp_path: Path) -> None:
    source = make_vlora(tmp_path).rename(tmp_path / "llava-lora-v1")
    config = read_json(source / "config.json")
    write_json(source / "config.json", {**config, "_name_or_path": "llava"})
    assert convert(source, tmp_path / "out", verify=False)["from"] == "vlora"


def _same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_copies_in_another_precision_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    """A full checkpoint in half precision holds a rounded copy of its tower, which is named in float32."""
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, 8, 2, dtype=torch.int64).float() / 8)
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": frequencies.clone() for layer in range(3)}
    source = make_llava(tmp_path, dtype=dtype, extra=buffers)
    convert(source, tmp_path / "own", verify=False)
    convert(tmp_path / "own", tmp_path / "back", to="llava", verify=False)
    assert _same(load_file(tmp_path / "back" / "model.safetensors"), load_file(source / "model.safetensors"))


@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model.model."])
def test_a_projector_keeps_the_prefix_of_its_names(tmp_path: Path, prefix: str) -> None:
    source = make_llava(tmp_path)
    whole = load_file(source / "model.safetensors")
    state = {f"{prefix}{name[6:]}": tensor for name, tensor in whole.items() if name.startswith("model.mm_projector.")}
    (tmp_path / "stage1").mkdir()
    torch.save(state, tmp_path / "stage1" / "mm_projector.bin")
    shutil.copyfile(source / "config.json", tmp_path / "stage1" / "config.json")
    (source / "config.json").write_text(json.dumps({**LLM, "model_type": "llama", "vocab_size": 440}))
    save_file({name: whole[name] for name in whole if "mm_projector" not in name and "vision" not in name},
              source / "model.safetensors")  # fmt: skip
    convert(tmp_path / "stage1", tmp_path / "own", llm=str(source), verify=False)
    convert(tmp_path / "own", tmp_path / "back", to="llava", verify=False)
    assert _same(torch.load(tmp_path / "back" / "mm_projector.bin"), state)
