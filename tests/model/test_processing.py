"""The rules of the processor: media and markers, answers, lengths, batches, prompts, saving."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmtune.core.errors import CheckpointError, DataError, MediaError, UsageError
from mmtune.data.sample import Media, Sample, Text, Turn, conversation
from mmtune.model.processing import MMTuneProcessor, OverlongError
from tests.model import golden

CAT, BOAT = (str(golden.LLAVA / "images" / name) for name in ("cat.png", "boat.png"))
POSITIONS = 16


@pytest.fixture(scope="module")
def shared() -> MMTuneProcessor:
    return golden.processor(golden.LLAVA, template="vicuna_v1", slots="positions")


@pytest.fixture
def processor(shared: MMTuneProcessor) -> MMTuneProcessor:
    found = copy.copy(shared)
    found.slots = dict(shared.slots)
    return found


def _runs(ids: list[int], placeholder: int) -> list[int]:
    """Lengths of the runs of placeholders."""
    runs, previous = [], None
    for token_id in ids:
        if token_id == placeholder:
            runs = [*runs, 1] if previous != placeholder else [*runs[:-1], runs[-1] + 1]
        previous = token_id
    return runs


def test_several_media_in_one_turn_are_never_collapsed(processor: MMTuneProcessor) -> None:
    sample = conversation("Which is a cat?", "The first.", media={"image": [CAT, BOAT]})
    encoded = processor.encode(sample)
    assert _runs(encoded.input_ids, processor.placeholder_ids["image"]) == [POSITIONS, POSITIONS]
    assert len(encoded.media["image"]) == 2
    assert processor.render_prompt(sample).endswith("USER: <image>\n<image>\nWhich is a cat? ASSISTANT:")


def test_markers_move_to_the_head_of_their_turn(processor: MMTuneProcessor) -> None:
    turn = Turn("user", (Text(" Is "), Media("image", CAT), Text(" like "), Media("image", BOAT), Text(" ? ")))
    sample = Sample("a", (turn,))
    assert processor.render_prompt(sample).endswith("USER: <image>\n<image>\nIs  like  ? ASSISTANT:")
    assert processor.render_prompt(sample, template="raw") == " Is <image> like <image> ? "


@pytest.mark.parametrize(("slots", "runs"), [("positions", [POSITIONS]), (1, [1]), (3, [3]), (0, [])])
def test_slots(processor: MMTuneProcessor, slots: Any, runs: list[int]) -> None:
    processor.slots["image"] = slots
    sample = conversation("What?", "A cat.", media={"image": [CAT]})
    encoded = processor.encode(sample)
    assert _runs(encoded.input_ids, processor.placeholder_ids["image"]) == runs
    assert len(encoded.media["image"]) == 1
    assert "<image>" in processor.render_prompt(sample)
    assert processor.measure(sample).input_ids == encoded.input_ids
    assert processor.measure(sample).media == {}


def test_labels_are_the_answers(processor: MMTuneProcessor) -> None:
    encoded = processor.encode(conversation("What?", "A cat.", "Colour?", "Black.", media={"image": [CAT]}))
    trained = [label for label in encoded.labels if label != -100]
    assert processor.tokenizer.decode(trained) == "A cat.</s> Black.</s>"
    assert encoded.num_targets == len(trained)
    assert all(label in (-100, token) for label, token in zip(encoded.labels, encoded.input_ids, strict=True))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((), "no answer"),
        ((Turn("user", (Text("Hi"),)),), "no answer"),
        ((Turn("user", (Text("Hi"),)), Turn("assistant", (Text(" "),))), "empty answer"),
        ((Turn("user", (Text("Hi"),)), Turn("user", (Text("Hi"),)), Turn("assistant", (Text("a"),))), "must be by"),
        ((Turn("user", (Text("<image> Hi"),)), Turn("assistant", (Text("a"),))), "marker <image>"),
        ((Turn("user", (Text("Hi"),)), Turn("assistant", (Text("an <image>"),))), "marker <image>"),
        ((Turn("user", (Media("audio", "x.wav"), Text("Hi"))), Turn("assistant", (Text("a"),))), "does not take"),
        ((Turn("user", (Media("image", "none.png"), Text("Hi"))), Turn("assistant", (Text("a"),))), "No such picture"),
    ],
)
def test_bad_rows_name_themselves(processor: MMTuneProcessor, turns: tuple[Turn, ...], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        processor.encode(Sample("row-7", turns, "data.json:12"))
    assert "row-7" in str(raised.value.where)
    assert "data.json:12" in str(raised.value.where)
    assert raised.value.exit_code == 3


def test_media_error_keeps_its_kind(processor: MMTuneProcessor) -> None:
    with pytest.raises(MediaError):
        processor.encode(conversation("What?", "A cat.", media={"image": ["none.png"]}))


def test_leading_answers_are_dropped_and_counted(processor: MMTuneProcessor) -> None:
    talk = conversation("Hi", "Hello.")
    greeting = Turn("assistant", (Text("Welcome."),))
    system = Turn("system", (Text("Be kind."),))
    plain = processor.encode(Sample("a", (system, *talk.turns)))
    greeted = processor.encode(Sample("a", (system, greeting, greeting, *talk.turns)))
    assert (greeted.dropped_turns, plain.dropped_turns) == (2, 0)
    assert greeted.input_ids == plain.input_ids


@pytest.mark.parametrize("template", ["vicuna_v1", "llama_2", "v0", "mistral_instruct"])
def test_control_tokens_in_data_stay_text(processor: MMTuneProcessor, template: str) -> None:
    clean = processor.encode(conversation("Say x.", "Yes x."), template=template).input_ids
    dirty = processor.encode(conversation("Say </s><s>.", "Yes </s>."), template=template)
    assert [dirty.input_ids.count(token) for token in (1, 2)] == [clean.count(token) for token in (1, 2)]
    assert "</s><s>." in processor.tokenizer.decode(dirty.input_ids)
    assert "Say </s><s>." in processor.render_prompt(conversation("Say </s><s>."), template=template)


def test_raw_is_exactly_what_was_given(processor: MMTuneProcessor) -> None:
    text = "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]"
    sample = conversation(text)
    assert (
        processor.encode_prompt(sample, template="raw").input_ids
        == processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    assert processor.render_prompt(conversation("a b "), template="raw") == "a b "
    assert processor.encode_prompt(conversation("a b "), template="raw").input_ids[0] == 1


def test_system_text(processor: MMTuneProcessor) -> None:
    sample = conversation("Hi")
    assert processor.render_prompt(sample, system="Be brief.") == "Be brief. USER: Hi ASSISTANT:"
    own = Sample("a", (Turn("system", (Text("Be kind."),)), *sample.turns))
    assert processor.render_prompt(own) == "Be kind. USER: Hi ASSISTANT:"
    assert processor.render_prompt(own, system="Be brief.") == "Be brief. USER: Hi ASSISTANT:"
    assert processor.render_prompt(sample, system="") == "USER: Hi ASSISTANT:"


def test_a_prompt_is_the_row_without_its_answer(processor: MMTuneProcessor) -> None:
    row = conversation("What?", "A cat.", "Colour?", "Black.", media={"image": [CAT]})
    prompt = processor.encode_prompt(row)
    whole = processor.encode(row)
    assert prompt.input_ids == whole.input_ids[: len(prompt.input_ids)]
    assert (prompt.labels, prompt.num_targets) == ([], 0)
    assert processor.encode(row, train=False).input_ids == prompt.input_ids


def test_overlong_rows(processor: MMTuneProcessor) -> None:
    sample = conversation("What is this?", "A black cat on a wall, and more of it.", media={"image": [CAT]})
    whole = processor.encode(sample)
    length = len(whole.input_ids)
    assert processor.encode(sample, max_length=length).truncated == 0
    for overlong in ("error", "drop"):
        with pytest.raises(OverlongError, match=f"{length} positions, the limit is {length - 1}"):
            processor.encode(sample, max_length=length - 1, overlong=overlong)
    cut = processor.encode(sample, max_length=length - 5, overlong="truncate-text")
    assert (cut.truncated, len(cut.input_ids), cut.num_targets) == (5, length - 5, whole.num_targets - 5)
    assert cut.labels == whole.labels[:-5]
    with pytest.raises(DataError, match="no token left"):
        processor.encode(sample, max_length=length - whole.num_targets, overlong="truncate-text")
    for limit in (whole.media_end - 1, whole.media_end - POSITIONS, 1):
        with pytest.raises(OverlongError, match="through a medium"):
            processor.encode(sample, max_length=limit, overlong="truncate-text")


def test_plain_needs_media_and_one_round(processor: MMTuneProcessor) -> None:
    with pytest.raises(DataError, match="without media"):
        processor.encode(conversation("Describe.", "A cat."), template="plain")
    with pytest.raises(DataError, match="2 turns"):
        processor.encode(conversation("a", "b", "c", "d", media={"image": [CAT]}), template="plain")
    encoded = processor.encode(conversation("Ignored.", "A cat.", media={"image": [CAT]}), template="plain")
    assert encoded.labels[1 + POSITIONS :] == encoded.input_ids[1 + POSITIONS :]
    bare = Sample("a", (Turn("user", (Media("image", CAT),)),))
    assert processor.encode_prompt(bare, template="plain").input_ids == encoded.input_ids[: 1 + POSITIONS]


@pytest.mark.parametrize("side", ["right", "left"])
def test_collate(processor: MMTuneProcessor, side: Any) -> None:
    rows = [
        conversation("What?", "A cat.", id="a", media={"image": [CAT]}),
        conversation("Name a colour.", "Red.", id="b"),
        conversation("Which?", "The first of both.", id="c", media={"image": [CAT, BOAT]}),
    ]
    encoded = [processor.encode(row) for row in rows]
    batch = processor.collate(encoded, side=side)
    for index, row in enumerate(encoded):
        real = batch["attention_mask"][index].bool()
        assert batch["input_ids"][index][real].tolist() == row.input_ids
        assert batch["labels"][index][real].tolist() == row.labels
        assert (batch["labels"][index][~real] == -100).all()
        assert real[0 if side == "right" else -1]
    assert batch["ids"] == ["a", "b", "c"]
    assert batch["media"]["image"]["owner"].tolist() == [0, 2, 2]
    assert batch["media"]["image"]["pixel_values"].shape == (3, 3, 56, 56)
    assert "media" not in processor.collate(encoded[1:2])
    assert "labels" not in processor.collate([processor.encode_prompt(rows[0])])


def test_call_like_a_hugging_face_processor(processor: MMTuneProcessor) -> None:
    text = "USER: <image>\nWhat is it? ASSISTANT:"
    one = processor(text=text, images=Image.open(CAT))
    assert set(one) == {"input_ids", "attention_mask", "media"}
    assert torch.equal(one["input_ids"], processor(text=[text], images=[CAT])["input_ids"])
    two = processor(text=[text, "Hi"], images=[[CAT], []])
    assert two["media"]["image"]["owner"].tolist() == [0]
    assert two["attention_mask"][1][0] == 0
    flat = processor(text=[text, text], images=[CAT, BOAT])
    assert flat["media"]["image"]["owner"].tolist() == [0, 1]
    messages = [{"role": "user", "content": [{"type": "image", "image": CAT}, {"type": "text", "text": "What is it?"}]}]
    talk = processor(messages=messages)
    sample = conversation("What is it?", media={"image": [CAT]})
    assert talk["input_ids"][0].tolist() == processor.encode_prompt(sample).input_ids


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, UsageError),
        ({"text": "a", "messages": []}, UsageError),
        ({"text": "a", "audios": ["x"]}, UsageError),
        ({"text": "a", "return_tensors": "np"}, UsageError),
        ({"text": ["a", "b"], "images": [[CAT]]}, UsageError),
        ({"text": "<image> a"}, DataError),
        ({"text": "a", "images": CAT}, DataError),
        ({"text": "<image> a", "images": [CAT, CAT]}, DataError),
        ({"messages": [{"role": "robot", "content": "a"}]}, DataError),
    ],
)
def test_calls_that_do_not_fit(processor: MMTuneProcessor, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        processor(**arguments)


def test_pickle_and_save(processor: MMTuneProcessor, tmp_path: Path) -> None:
    row = conversation("What?", "A </s> cat.", "Colour?", "Black.", media={"image": [CAT]})
    expected = processor.encode(row)
    processor.save_pretrained(tmp_path)
    read = MMTuneProcessor.from_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    for other in (pickle.loads(pickle.dumps(processor)), read):
        encoded = other.encode(row)
        assert (encoded.input_ids, encoded.labels) == (expected.input_ids, expected.labels)
        assert torch.equal(encoded.media["image"][0]["pixel_values"], expected.media["image"][0]["pixel_values"])
    assert (read.template, read.slots, read.placeholder_ids) == (
        processor.template,
        processor.slots,
        processor.placeholder_ids,
    )


def test_no_processor_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No processor"):
        MMTuneProcessor.from_pretrained(tmp_path)


def test_unknown_template(processor: MMTuneProcessor) -> None:
    with pytest.raises(UsageError, match="Did you mean 'vicuna_v1'"):
        processor.encode(conversation("a", "b"), template="vicuna_v2")


def test_decode(processor: MMTuneProcessor) -> None:
    ids = processor.encode(conversation("Name a colour.", "Red.")).input_ids
    assert processor.decode([*ids, processor.placeholder_ids["image"]]).endswith("ASSISTANT: Red.")
