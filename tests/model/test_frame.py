"""Texts around each item: written by conversation formats, left to the text where it says everything itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mmtune.core.errors import DataError
from mmtune.data.sample import conversation
from mmtune.model.build import build_model
from mmtune.model.processing import MMTuneProcessor

PICTURE = Image.new("RGB", (20, 20))


@pytest.fixture(scope="module")
def processor() -> MMTuneProcessor:
    _, made = build_model(settings={"start": "<A>", "end": "<B>"}, template="vicuna_v1")
    return made


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("vicuna_v1", "USER: <A><image><B>\nWhat? ASSISTANT:"),
        ("llava_v0", "Human: <A><image><B>\nWhat?###Assistant:"),
        ("plain", "<A><image><B>\nWhat?\n"),
        ("raw", "<image>What?"),
    ],
)
def test_prompts(processor: MMTuneProcessor, template: str, text: str) -> None:
    sample = conversation("What?", media={"image": [PICTURE]})
    assert processor.render_prompt(sample, template=template).endswith(text)


def test_training(processor: MMTuneProcessor) -> None:
    sample = conversation("What?", "A boat.", media={"image": [PICTURE]})
    row = processor.encode(sample)
    plain = MMTuneProcessor(
        processor.tokenizer, processor.modalities, "vicuna_v1", processor.placeholder_ids, processor.slots
    ).encode(sample)
    trained = [label for label in row.labels if label != -100]
    assert trained == [label for label in plain.labels if label != -100]
    assert len(row.input_ids) > len(plain.input_ids)
    first = processor.encode(sample, template="plain").input_ids.index(processor.placeholder_ids["image"])
    assert first == len(processor._pieces.opening)  # nothing stands around the medium of a caption


def test_a_saved_processor_keeps_them(processor: MMTuneProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = MMTuneProcessor.from_pretrained(tmp_path)
    assert again.frame == processor.frame
    sample = conversation("What?", media={"image": [PICTURE]})
    assert again.encode_prompt(sample).input_ids == processor.encode_prompt(sample).input_ids
    with pytest.raises(DataError, match="marker"):
        again.encode_prompt(conversation("What <image>?"))
