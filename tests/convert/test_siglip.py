"""Native LLaVA folders whose tower is SigLIP: no class token, all positions are patches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessorPil,
)

import mmtune
from mmtune.convert.run import convert
from mmtune.core.errors import NotPossibleError
from mmtune.data.sample import conversation
from mmtune.model.processing import load_tokenizer
from tests.convert.originals import CLIP, LLAVA, LLM, read_json, write_json

TOWER = {"model_type": "siglip_vision_model", **CLIP, "vision_use_head": False}


def make_folder(folder: Path, *, layer: int = -1, strategy: str = "full", head: bool = False) -> Path:
    torch.manual_seed(0)
    tokenizer = load_tokenizer(LLAVA / "checkpoint")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    config = LlavaConfig(
        vision_config={**TOWER, "vision_use_head": head},
        text_config={"model_type": "llama", **LLM, "vocab_size": 448, "initializer_range": 0.2},
        image_token_index=440,
        image_seq_length=16,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    prepare = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    LlavaProcessor(
        prepare, tokenizer, patch_size=7, vision_feature_select_strategy=strategy, num_additional_image_tokens=0
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("layer", "head"), [(-1, False), (-2, True)])
def test_answers_and_back(tmp_path: Path, layer: int, head: bool) -> None:
    source = make_folder(tmp_path / "source", layer=layer, head=head)
    assert convert(source, tmp_path / "out")["verified"]["greedy_equal"] is True
    picture = Image.effect_mandelbrot((50, 30), (-2, -1, 1, 1), 20).convert("RGB")
    native = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    given = AutoProcessor.from_pretrained(source, backend="pil")(
        text="USER: <image>", images=[picture], return_tensors="pt"
    )
    model, processor = mmtune.load(tmp_path / "out", device="cpu")
    batch = processor(text="USER: <image>", images=[picture])
    assert torch.equal(batch["media"]["image"]["pixel_values"], given["pixel_values"])
    with torch.no_grad():
        assert (model(**batch).logits - native(**given).logits).abs().max() < 1e-4
    assert processor.encode_prompt(conversation("What?", media={"image": [picture]})).input_ids.count(448) == 16
    assert convert(tmp_path / "out", tmp_path / "back", to="hf")["verified"]["greedy_equal"] is True
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "back", dtype=torch.float32).state_dict()
    assert all(torch.equal(again[name], value) for name, value in native.state_dict().items())


def test_what_is_refused(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    convert(source, tmp_path / "out", verify=False)
    with pytest.raises(NotPossibleError, match="CLIP towers only"):
        convert(tmp_path / "out", tmp_path / "back", to="llava")
    config = read_json(source / "config.json")
    write_json(source / "config.json", {**config, "vision_feature_select_strategy": "default"})
    with pytest.raises(NotPossibleError, match="selected as 'default'"):
        convert(source, tmp_path / "again")
