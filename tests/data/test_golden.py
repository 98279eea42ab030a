"""The original token ids and labels of LLaVA and VLoRA come out of prepared data and of raw files alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmtune.data.dataset import load_samples
from mmtune.data.prepare import prepare
from tests.model import golden

CASES = [
    (golden.LLAVA, "data.json", "images", "inputs.safetensors", "", "vicuna_v1", "pad", "positions"),
    (golden.LLAVA, "pretrain.json", "images", "pretrain_inputs.safetensors", "", "plain", "pad", "positions"),
    (golden.VLORA, "data/sft.json", "data/images", "inputs.safetensors", "sft.", "vicuna_v1", "pad", 1),
    (golden.VLORA, "data/pretrain.json", "data/images", "inputs.safetensors", "pre.", "plain", "square", 1),
]


@pytest.mark.parametrize("form", ["prepared", "embedded", "slices", "raw"])
@pytest.mark.parametrize(("case", "data", "images", "inputs", "prefix", "template", "aspect", "slots"), CASES)
def test_ids_and_labels_equal_the_originals(
    case, data, images, inputs, prefix, template, aspect, slots, form, tmp_path: Path
) -> None:
    source, options = case / data, {"media_root": [case / images]}
    if form == "raw":
        samples = load_samples(source, cache=tmp_path, **options)
    else:
        if form == "slices":
            for part in (1, 2):
                prepare([source], tmp_path / f"slice{part}", shard=(part, 2), **options)
            prepare([tmp_path / "slice1", tmp_path / "slice2"], tmp_path / "out")
        else:
            prepare([source], tmp_path / "out", embed_media=form == "embedded", check_media="decode", **options)
        samples = load_samples(tmp_path / "out")
    processor = golden.processor(case, template=template, slots=slots, aspect=aspect)
    expected = golden.tensors(case / inputs)
    masks = expected[prefix + "attention_mask"]
    assert len(samples) == len(masks)
    encoded = [processor.encode(sample) for sample in samples]
    for index, row in enumerate(encoded):
        ids, labels = golden.as_original(row, processor.placeholder_ids["image"])
        assert ids == golden.unpadded(expected[prefix + "input_ids"][index], masks[index])
        assert labels == golden.unpadded(expected[prefix + "labels"][index], masks[index])
    assert golden.stacked(encoded).equal(expected[prefix + "images"])
