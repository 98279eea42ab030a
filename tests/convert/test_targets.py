"""Every target: round trips are bit-equal, plain transformers and PEFT load what was written, the rest is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, SiglipVisionConfig, SiglipVisionModel

import mmtune
from mmtune.convert.run import convert
from mmtune.convert.tensors import open_folder
from mmtune.core.errors import CheckpointError, MMTuneError, NotPossibleError, UsageError
from tests.convert.originals import CLIP, LLAVA, VLORA, make_llava, read_json, write_json

Convert = Callable[[str], Path]
WHOLE = ("model", "pytorch_model")
TILES = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": "[[28, 56], [56, 28], [56, 56], [84, 28]]"}


def same_tensors(first: Path, second: Path, stems: tuple[str, ...]) -> None:
    found, wanted = open_folder(first, stems), open_folder(second, stems)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].read(), tensor.read()), name


@pytest.mark.parametrize(
    ("name", "source", "target", "stems"),
    [
        ("llava-full", LLAVA / "checkpoint", "llava", (WHOLE,)),
        ("llava-stage1", LLAVA / "stage1_llava_pretrain", "llava", (("mm_projector",),)),
        ("llava-lora", LLAVA / "llava_lora", "llava", (("adapter_model",), ("non_lora_trainables",))),
        ("vlora-full", VLORA / "checkpoint", "vlora", (WHOLE,)),
        ("vlora-stage1", VLORA / "adapter", "vlora", (("mm_projector",),)),
    ],
)
def test_round_trips(
    converted: Convert, tmp_path: Path, name: str, source: Path, target: str, stems: tuple[tuple[str, ...], ...]
) -> None:
    result = convert(converted(name), tmp_path / "back", to=target)
    assert (result["from"], result["to"]) == ("mmtune", target)
    assert result["verified"]["greedy_equal"] is True
    for stem in stems:
        same_tensors(tmp_path / "back", source, stem)
    assert read_json(tmp_path / "back" / "config.json") == read_json(source / "config.json")
    for file in ("tokenizer.model", "tokenizer_config.json", "adapter_config.json"):
        if (source / file).is_file():
            assert (tmp_path / "back" / file).read_bytes() == (source / file).read_bytes() or file.startswith("adapter")


def test_what_was_kept_of_the_source_may_be_damaged(converted: Convert, tmp_path: Path) -> None:
    folder = shutil.copytree(converted("llava-full"), tmp_path / "own")
    kept = read_json(folder / "original" / "format.json")
    for wrong in ({"tower_inside": True}, {"tower_inside": "load"}, {"computed": ["a"]}, {"computed": {"a": "x"}}):
        write_json(folder / "original" / "format.json", {**kept, **wrong})
        with pytest.raises(CheckpointError, match=r"format\.json"):
            convert(folder, tmp_path / "out", to="llava", verify=False)


def test_a_full_checkpoint_of_a_projector(converted: Convert, tmp_path: Path) -> None:
    result = convert(converted("llava-stage1"), tmp_path / "full", to="llava", settings={"form": "full"})
    assert result["verified"]["greedy_equal"] is True
    tower = str(LLAVA / "vision_tower")
    assert convert(tmp_path / "full", tmp_path / "again", vision=tower, verify=False)["form"] == "full"
    for form, error in (("lora", NotPossibleError), ("half", UsageError)):
        with pytest.raises(error):
            convert(converted("llava-stage1"), tmp_path / "x", to="llava", settings={"form": form})


def native_answer(folder: Path, row: dict[str, Any]) -> tuple[list[int], str]:
    """The answer of plain transformers, prompt and picture prepared by the folder's own processor."""
    model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    parts = [{"type": "image"}] if row["image"] else []
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": row["question"]}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    pictures = [Image.open(LLAVA / row["image"]).convert("RGB")] if row["image"] else None
    inputs = processor(text=prompt, images=pictures, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return made[0, inputs["input_ids"].shape[1] :].tolist(), prompt


@pytest.mark.afresh
def test_plain_transformers_gives_the_original_answers(tmp_path: Path) -> None:
    convert(LLAVA / "checkpoint", tmp_path / "hf", to="hf")
    rows = json.loads((LLAVA / "generate.json").read_text())
    for row in [next(r for r in rows if r["image"]), next(r for r in rows if not r["image"])]:
        new, prompt = native_answer(tmp_path / "hf", row)
        assert prompt == row["prompt"]
        assert new == row["output_ids"][1:]


@pytest.mark.parametrize(
    "options",
    [
        {"projector": "linear", "config": {"mm_vision_select_layer": -3, "image_aspect_ratio": "square"}},
        {"projector": "mlp1x_gelu", "config": {"mm_vision_select_feature": "cls_patch"}},
        {"projector": "identity", "clip": {"hidden_size": 48}, "llm": {"tie_word_embeddings": True}},
        {"mistral": True, "dtype": torch.bfloat16, "shards": 2},
        {"config": TILES | {"mm_patch_merge_type": "spatial_unpad"}, "extra": {"model.image_newline": torch.ones(48)}},
    ],
    ids=["linear", "mlp1-cls", "identity-tied", "mistral", "next"],
)
def test_native_llava_and_back(tmp_path: Path, options: dict[str, Any]) -> None:
    source = make_llava(tmp_path, **options)
    assert convert(source, tmp_path / "hf", to="hf")["verified"]["greedy_equal"] is True
    back = convert(tmp_path / "hf", tmp_path / "own")
    assert (back["from"], back["to"]) == ("hf", "mmtune")
    assert back["verified"]["greedy_equal"] is True
    again = convert(tmp_path / "own", tmp_path / "llava", to="llava")
    assert again["verified"]["greedy_equal"] is True
    original, written = open_folder(source), open_folder(tmp_path / "llava")
    grown = ("model.embed_tokens.weight", "lm_head.weight")  # with rows for the picture's token
    for name in original:
        if name in written and name not in grown and "vision_tower" not in name:
            assert torch.equal(written[name].read(), original[name].read()), name
    assert sum("mm_projector" in name for name in written) in (0, 2, 4)


def test_a_language_model_taken_out_is_told(tmp_path: Path) -> None:
    """Read as what it is the folder comes whole; read as a plain model, what stays behind is counted."""
    source = make_llava(tmp_path)
    notes = convert(source, tmp_path / "alone", from_format="hf", to="hf")["notes"]
    assert any("tensors beside the language model are left out" in note for note in notes)
    assert not any("left out" in note for note in convert(source, tmp_path / "whole", to="hf")["notes"])


def test_native_llava_has_two_layers_and_one_way_with_tiles(tmp_path: Path) -> None:
    deep = make_llava(tmp_path / "deep", projector="mlp3x_gelu")
    flat = make_llava(tmp_path / "flat", config={**TILES, "mm_patch_merge_type": "flat"})
    for source in (deep, flat):
        with pytest.raises(NotPossibleError, match="transformers has no class"):
            convert(source, tmp_path / "out", to="hf")


def test_lora_in_all_its_forms(converted: Convert, tmp_path: Path) -> None:
    for target in ("merged", "hf", "adapter"):
        result = convert(converted("llava-lora"), tmp_path / target, to=target)
        assert result["verified"]["greedy_equal"] is True
    same_tensors(tmp_path / "adapter", LLAVA / "llava_lora", ("adapter_model",))
    assert any("stay in the source" in note for note in result["notes"])
    alone = convert(tmp_path / "adapter", tmp_path / "plain")
    assert (alone["from"], alone["to"], alone["form"]) == ("hf", "merged", "language")
    merged = load_file(tmp_path / "plain" / "model.safetensors")
    other = load_file(tmp_path / "merged" / "language_model" / "model.safetensors")
    assert all(torch.equal(merged[name], other[name]) for name in merged)


@pytest.mark.parametrize(
    ("name", "targets"),
    [("vlora-full", ("hf", "merged", "adapter", "llava")), ("llava-full", ("merged", "adapter", "vlora"))],
)
def test_what_is_not_possible_says_why(converted: Convert, tmp_path: Path, name: str, targets: tuple[str, ...]) -> None:
    for target in targets:
        with pytest.raises(NotPossibleError) as caught:
            convert(converted(name), tmp_path / "out", to=target)
        assert caught.value.exit_code == 4
        assert caught.value.fix
    assert not (tmp_path / "out").exists()


def test_plain_models_of_transformers(tmp_path: Path) -> None:
    result = convert(LLAVA / "base_llm", tmp_path / "llm", dtype="float16")
    assert (result["from"], result["to"], result["verified"]["greedy_equal"]) == ("hf", "hf", True)
    assert convert(LLAVA / "vision_tower", tmp_path / "clip")["verified"]["greedy_equal"] is None
    same_tensors(tmp_path / "clip", LLAVA / "vision_tower", WHOLE)
    SiglipVisionModel(SiglipVisionConfig(**CLIP)).save_pretrained(tmp_path / "siglip")
    assert convert(tmp_path / "siglip", tmp_path / "siglip-out")["verified"]["max_abs_logit_diff"] < 1e-5


def test_deltas_need_their_base(tmp_path: Path) -> None:
    source = tmp_path / "delta"
    shutil.copytree(LLAVA / "checkpoint", source)
    shutil.copytree(LLAVA / "vision_tower", tmp_path / "vision_tower")
    state, base = load_file(source / "model.safetensors"), load_file(LLAVA / "base_llm" / "model.safetensors")
    wanted = {name: tensor.clone() for name, tensor in state.items()}
    for name, tensor in base.items():
        state[name] = state[name] - tensor
    save_file(state, source / "model.safetensors")
    write_json(source / "config.json", {**read_json(source / "config.json"), "model_type": "llama"})
    result = convert(source, tmp_path / "out", llm=str(LLAVA / "base_llm"))
    assert result["verified"]["greedy_equal"] is True
    written = load_file(tmp_path / "out" / "language_model" / "model.safetensors")
    assert all(torch.allclose(tensor, wanted[name], atol=1e-6) for name, tensor in written.items())
    with pytest.raises(CheckpointError, match="base"):
        convert(source, tmp_path / "other", llm=str(VLORA / "checkpoint"))


def test_lora_saved_during_training(tmp_path: Path) -> None:
    for name in ("vision_tower", "base_llm"):
        shutil.copytree(LLAVA / name, tmp_path / name)
    run = Path(shutil.copytree(LLAVA / "llava_lora", tmp_path / "run"))
    step = run / "checkpoint-2"
    step.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(run / name, step / name)
    result = convert(step, tmp_path / "out")
    assert (result["from"], result["form"]) == ("llava", "lora")
    assert any("finished run" in note for note in result["notes"])
    (run / "non_lora_trainables.bin").unlink()
    with pytest.raises(CheckpointError, match="projector") as caught:
        convert(step, tmp_path / "no")
    assert "--set projector" in str(caught.value.fix)
    stage1 = str(LLAVA / "stage1_llava_pretrain")
    assert convert(step, tmp_path / "stage1", settings={"projector": stage1})["verified"]["greedy_equal"] is True


def test_a_converted_folder_knows_its_base(converted: Convert, tmp_path: Path) -> None:
    folder = shutil.copytree(converted("llava-stage1"), tmp_path / "copy")
    assert len(read_json(folder / "config.json")["base"]["probe"]) == 16
    state = load_file(folder / "language_model" / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in state.items()}, folder / "language_model" / "model.safetensors")
    with pytest.raises(CheckpointError, match="not the one"):
        mmtune.load(folder, device="cpu")


def test_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []

    def upload(folder: Path, name: str) -> str:
        seen.append((folder / "README.md").read_text())
        return name

    monkeypatch.setattr("mmtune.convert.push.push_folder", upload)
    convert(LLAVA / "llava_lora", tmp_path / "out", push="some/model")
    for words in ("some/model", "llava (lora)", "greedy answers equal", "mmtune.load", "in this folder"):
        assert words in seen[0]
    assert "README.md" in read_json(tmp_path / "out" / "MANIFEST.json")["files"]


BIAS = "vision_tower.vision_model.post_layernorm.bias"
NATIVE_DAMAGES: dict[str, Callable[[dict[str, Any], dict[str, torch.Tensor]], None]] = {
    "no-text-config": lambda config, state: config.pop("text_config") and None,
    "text-config-list": lambda config, state: config.update(text_config=[1]),
    "wrong-hidden": lambda config, state: config["text_config"].update(hidden_size=72),
    "more-layers": lambda config, state: config["text_config"].update(num_hidden_layers=9),
    "wrong-tower": lambda config, state: config["vision_config"].update(hidden_size=40),
    "unknown-type": lambda config, state: config.update(model_type="llava_nexxt"),
    "activation": lambda config, state: config.update(projector_hidden_act="relu"),
    "layers": lambda config, state: config.update(vision_feature_layer=[-2, -1]),
    "selection": lambda config, state: config.update(vision_feature_select_strategy="some"),
    "missing": lambda config, state: state.update(other=state.pop("multi_modal_projector.linear_1.bias")),
    "missing-head": lambda config, state: state.update(other=state.pop("language_model.model.norm.weight")),
    "unknown": lambda config, state: state.update({"language_model.extra": torch.ones(2)}),
    "shape": lambda config, state: state.update({"multi_modal_projector.linear_2.weight": torch.ones(3, 3)}),
    "nan": lambda config, state: state.update({BIAS: state[BIAS] * float("nan")}),
}


@pytest.mark.parametrize("kind", NATIVE_DAMAGES)
def test_damaged_native_folders(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "hf"
    convert(LLAVA / "checkpoint", source, to="hf", verify=False)
    config, state = read_json(source / "config.json"), load_file(source / "model.safetensors")
    NATIVE_DAMAGES[kind](config, state)
    save_file(state, source / "model.safetensors")
    write_json(source / "config.json", config)
    with pytest.raises(MMTuneError) as caught:
        convert(source, tmp_path / "out")
    assert caught.value.exit_code in (3, 4), caught.value
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_lora_on_a_half_precision_base(tmp_path: Path) -> None:
    """The sum is rounded as the base is stored, which the check has to expect."""
    source = tmp_path / "run"
    for name in ("vision_tower", "base_llm"):
        shutil.copytree(LLAVA / name, tmp_path / name)
    state = load_file(tmp_path / "base_llm" / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in state.items()}
    save_file(halves, tmp_path / "base_llm" / "model.safetensors")
    shutil.copytree(LLAVA / "llava_lora", tmp_path / "lora")
    convert(tmp_path / "lora", source, verify=False)
    assert convert(source, tmp_path / "merged", to="merged")["verified"]["greedy_equal"] is True
    assert convert(source, tmp_path / "hf", to="hf", dtype="float16")["verified"]["greedy_equal"] is True
    (source / "encoder_lora").mkdir()
    with pytest.raises(NotPossibleError, match="encoder"):
        convert(source, tmp_path / "no", to="hf")
