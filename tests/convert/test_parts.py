"""Tokenizers, towers and bases that come along with a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

import mmtune
from mmtune.convert.detect import Found, detect
from mmtune.convert.locate import candidates, is_hub_id, locate, source_place
from mmtune.convert.push import push_folder
from mmtune.convert.run import convert
from mmtune.core.errors import CheckpointError, ResourceError, UsageError
from mmtune.data.sample import conversation
from mmtune.model.processing import MMTuneProcessor
from tests.convert.originals import CLIP, LLAVA, VLORA, make_llava, read_json, write_json


@pytest.mark.parametrize("removed", [(), ("tokenizer.json",)], ids=["both-forms", "sentencepiece-alone"])
def test_vlora_gets_the_ids_of_its_training(tmp_path: Path, removed: tuple[str, ...]) -> None:
    """Training used the fast form, which marks words after ``</s>`` too, although the files say legacy false."""
    source = Path(shutil.copytree(VLORA / "checkpoint", tmp_path / "checkpoint"))
    for name in removed:
        (source / name).unlink()
    convert(source, tmp_path / "out", vision=str(VLORA / "vision_tower"), verify=False)
    processor = MMTuneProcessor.from_pretrained(tmp_path / "out")
    rows = json.loads((VLORA / "data" / "sft.json").read_text())
    wanted = load_file(VLORA / "inputs.safetensors")
    for index, row in enumerate(rows):
        texts = [turn["value"] for turn in row["conversations"]]
        picture = "image" in row
        texts[0] = texts[0].replace("<image>", "").strip()
        texts[0] = "\n" + texts[0] if picture else texts[0]
        media = {"image": [VLORA / "data" / "images" / Path(row["image"]).name]} if picture else None
        ids = processor.encode(conversation(*texts, media=media)).input_ids
        kept = wanted["sft.input_ids"][index][wanted["sft.attention_mask"][index].bool()]
        assert ids == [384 if token == -200 else token for token in kept.tolist()]


def test_llava_reads_the_sentencepiece_form(tmp_path: Path) -> None:
    """A tokenizer.json beside tokenizer.model is not what the original trains with."""
    source = Path(shutil.copytree(LLAVA / "checkpoint", tmp_path / "checkpoint"))
    (source / "tokenizer.json").write_text("{}")
    convert(source, tmp_path / "out", vision=str(LLAVA / "vision_tower"), verify=False)
    processor = MMTuneProcessor.from_pretrained(tmp_path / "out")
    row = json.loads((LLAVA / "generate.json").read_text())[2]
    assert processor.encode_prompt(conversation(row["question"])).input_ids == row["input_ids"]


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    source = make_llava(tmp_path)
    write_json(source / "config.json", {**read_json(source / "config.json"), "vocab_size": 400})
    state = load_file(source / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:400].clone()
    save_file(state, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="440 tokens"):
        convert(source, tmp_path / "out", verify=False)


def test_a_tower_in_a_whole_clip_folder(tmp_path: Path) -> None:
    source = make_llava(tmp_path, inside=False)
    shutil.copyfile(tmp_path / "tower" / "preprocessor_config.json", tmp_path / "preparation.json")
    shutil.rmtree(tmp_path / "tower")
    torch.manual_seed(0)
    text = {
        "vocab_size": 50,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    CLIPModel(CLIPConfig(vision_config=CLIP, text_config=text)).save_pretrained(tmp_path / "tower")
    shutil.copyfile(tmp_path / "preparation.json", tmp_path / "tower" / "preprocessor_config.json")
    assert convert(source, tmp_path / "out")["verified"]["greedy_equal"] is True
    names = load_file(tmp_path / "out" / "encoders" / "image" / "model.safetensors")
    assert all(name.startswith("vision_model.") for name in names)


def test_the_trained_tower_inside_comes_before_the_one_outside(tmp_path: Path) -> None:
    source = make_llava(tmp_path, config={"unfreeze_mm_vision_tower": True})
    state = load_file(tmp_path / "tower" / "model.safetensors")
    changed = {name: tensor + 1 for name, tensor in state.items()}
    save_file(changed, tmp_path / "tower" / "model.safetensors", metadata={"format": "pt"})
    convert(source, tmp_path / "out", verify=False)
    written = load_file(tmp_path / "out" / "encoders" / "image" / "model.safetensors")
    assert all(torch.equal(written[f"vision_model.{name}"], tensor) for name, tensor in state.items())
    write_json(source / "config.json", {**read_json(source / "config.json"), "unfreeze_mm_vision_tower": False})
    convert(source, tmp_path / "out", verify=False, overwrite=True)
    written = load_file(tmp_path / "out" / "encoders" / "image" / "model.safetensors")
    assert all(torch.equal(written[f"vision_model.{name}"], tensor) for name, tensor in changed.items())


def test_forms_are_told_by_content() -> None:
    assert detect(LLAVA / "checkpoint") == Found("llava", "full")
    assert detect(LLAVA / "stage1_llava_pretrain") == Found("llava", "projector")
    assert detect(LLAVA / "llava_lora") == Found("llava", "lora")
    assert detect(VLORA / "checkpoint") == Found("vlora", "full")
    assert detect(VLORA / "adapter") == Found("vlora", "projector")


def test_relative_paths_are_tried_here_first_and_then_beside_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here/base", "there/base"):
        write_json(tmp_path / folder / "config.json", {})
    (tmp_path / "there" / "runs" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    beside = tmp_path / "there" / "runs" / "one"
    assert locate("base", beside=beside, what="base", option="--llm").folder == Path("base")
    monkeypatch.chdir(tmp_path)
    assert locate("base", beside=beside, what="base", option="--llm").folder == tmp_path / "there" / "base"
    assert candidates("/absolute", beside) == [Path("/absolute")]
    with pytest.raises(CheckpointError, match="was not found"):
        locate("nothing", beside=beside, what="base", option="--llm")
    assert is_hub_id("openai/clip-vit-large-patch14-336")
    assert not is_hub_id("base")
    assert not is_hub_id("../up/base")


def test_a_hub_out_of_reach_is_a_matter_of_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", unreachable)
    with pytest.raises(ResourceError, match="cannot be fetched"):
        convert("some/model", tmp_path / "out")
    with pytest.raises(ResourceError, match="not uploaded"):
        push_folder(tmp_path, "some/model")
    with pytest.raises(ResourceError, match="cannot be fetched") as caught:
        locate("some/tower", what="vision tower", option="--vision")
    assert "--vision" in str(caught.value.fix)


def test_a_name_that_the_hub_would_refuse_is_noticed_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'bad name' is no name on the hub") as caught:
        convert(VLORA / "adapter", tmp_path / "out", push="bad name")
    assert caught.value.where == "--push"
    assert not (tmp_path / "out").exists()


def test_a_run_stands_for_its_model(tmp_path: Path) -> None:
    write_json(tmp_path / "status.json", {})
    with pytest.raises(CheckpointError, match="no model yet"):
        source_place(str(tmp_path))
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "config.json", {})
    assert source_place(str(tmp_path)).folder == tmp_path / "model"


def test_a_base_on_the_hub_stays_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = Path(shutil.copytree(LLAVA / "base_llm", tmp_path / "snapshots" / "abc123"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(cached))
    source = Path(shutil.copytree(LLAVA / "llava_lora", tmp_path / "lora"))
    adapter = read_json(source / "adapter_config.json")
    write_json(source / "adapter_config.json", {**adapter, "base_model_name_or_path": "lmsys/vicuna"})
    monkeypatch.setattr("mmtune.convert.skeleton.AutoConfig.from_pretrained", _local(cached))
    convert(source, tmp_path / "out", vision=str(LLAVA / "vision_tower"), verify=False)
    base = read_json(tmp_path / "out" / "config.json")["base"]
    assert (base["source"], base["revision"]) == ("lmsys/vicuna", "abc123")
    assert not (tmp_path / "out" / "language_model").exists()
    convert(source, tmp_path / "merged", vision=str(LLAVA / "vision_tower"), to="merged")
    model, _ = mmtune.load(tmp_path / "merged", device="cpu")
    assert model.roles()["lora"] == []


def _local(folder: Path) -> object:
    from transformers import AutoConfig

    original = AutoConfig.from_pretrained

    def read(source: str, **options: object) -> object:
        if source == "lmsys/vicuna":
            return original(str(folder))
        return original(source, **options)

    return read
