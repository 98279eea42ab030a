"""Methods with one place for media: their prefix stands in every template, and items elsewhere are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtune.core.errors import DataError
from mmtune.data.sample import Media, Sample, Text, Turn, conversation
from mmtune.model.build import build_model
from mmtune.model.processing import MMTuneProcessor
from tests.tiny import save_tiny_lm, save_tiny_vision

PICTURE = Image.new("RGB", (20, 12), (200, 30, 30))


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> MMTuneProcessor:
    folder = tmp_path_factory.mktemp("parts")
    vision = save_tiny_vision(folder / "vision")
    base = save_tiny_lm(folder / "lm")
    return build_model(base=base, encoders={"image": vision}, method="lavin", template="lavin")[1]


def asked(*parts: Any) -> Sample:
    return Sample("7", (Turn("user", tuple(Text(part) if isinstance(part, str) else part for part in parts)),))


SHOWN = Media("image", PICTURE)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("lavin", "Instruction: What?\nResponse:"),
        ("lavin_sqa", "What?\nResponse:"),
        ("vicuna_v1", None),
        ("raw", "What?"),
        ("chat", None),
    ],
)
def test_the_prefix_comes_first_in_every_template(
    processor: MMTuneProcessor, template: str, wanted: str | None
) -> None:
    text = processor.render_prompt(asked("What?"), template=template)
    shown = processor.render_prompt(asked(SHOWN, "What?"), template=template)
    assert text.startswith("Image: N/A")
    assert shown.startswith("Image: <image>")
    assert shown.count("<image>") == 1
    if wanted is not None:
        assert (text, shown) == ("Image: N/A" + wanted, "Image: <image>" + wanted)
    ids = processor.encode_prompt(asked(SHOWN, "What?"), template=template).input_ids
    assert ids[0] == processor.tokenizer.bos_token_id
    assert ids.count(processor.tokenizer.bos_token_id) == 1
    assert ids.index(processor.placeholder_ids["image"]) == 1 + len("Image: ")


@pytest.mark.parametrize("parts", [(SHOWN, "\nWhat?"), ("What?\n", SHOWN), (SHOWN, "What?")])
def test_the_marker_leaves_no_trace_at_the_ends_of_a_turn(processor: MMTuneProcessor, parts: tuple[Any, ...]) -> None:
    assert processor.render_prompt(asked(*parts)) == "Image: <image>Instruction: What?\nResponse:"


def test_answers_are_trained_with_the_end_of_the_tokenizer(processor: MMTuneProcessor) -> None:
    made = processor.encode(conversation("What?", "A cat.", media={"image": [PICTURE]}))
    trained = [label for label in made.labels if label != -100]
    assert processor.tokenizer.decode(trained) == "A cat.</s>"
    assert made.input_ids[-1] == processor.tokenizer.eos_token_id
    second = conversation("What?", "A cat.", "Sure?", "Yes.", media={"image": [PICTURE]})
    text = "".join(
        segment.text for segment in processor._render(processor.template_of(), second.turns, None, generate=False)
    )
    assert text.endswith("Response:A cat.</s>\nInstruction: Sure?\nResponse:Yes.</s>")


def test_captions_of_the_first_stage_have_the_prefix_as_their_prompt(processor: MMTuneProcessor) -> None:
    for media in ({}, {"image": [PICTURE]}):
        made = processor.encode(conversation("ignored", "A cat.", media=media), template="plain")
        assert processor.tokenizer.decode([label for label in made.labels if label != -100]) == "A cat.\n"


@pytest.mark.parametrize(
    ("sample", "template", "message"),
    [
        (asked(SHOWN, SHOWN, "Same?"), None, "2 media"),
        (asked("What is ", SHOWN, " this?"), "raw", "elsewhere"),
        (conversation("Hi", "Hello"), None, ""),
    ],
)
def test_what_stands_elsewhere_is_refused(
    processor: MMTuneProcessor, sample: Sample, template: str | None, message: str
) -> None:
    if not message:  # a picture that comes with a later question
        later = Turn("user", (SHOWN, Text("And this?")))
        sample, message = Sample("7", (*sample.turns, later)), "elsewhere"
    with pytest.raises(DataError, match=message) as caught:
        processor.encode_prompt(sample, template=template)
    assert caught.value.fix
    assert "row '" in str(caught.value.where)


def test_the_place_survives_saving(processor: MMTuneProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = MMTuneProcessor.from_pretrained(tmp_path, modalities=processor.modalities)
    assert again.lead == processor.lead
    assert again.render_prompt(asked("What?")) == processor.render_prompt(asked("What?"))


def test_a_call_needs_no_marker_where_each_prompt_has_its_list(processor: MMTuneProcessor) -> None:
    marked = processor(text=["<image>What?", "Why?"], images=[[PICTURE], []])
    assert (
        processor(text=["What?", "Why?"], images=[[PICTURE], []])["input_ids"].tolist() == marked["input_ids"].tolist()
    )
    single = processor(text="What?", images=PICTURE)
    assert single["input_ids"].tolist() == processor(text="<image>What?", images=PICTURE)["input_ids"].tolist()
    with pytest.raises(DataError, match="1 image items, but 0 markers"):  # whose is it?
        processor(text=["What?", "Why?"], images=[PICTURE])
