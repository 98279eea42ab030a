"""The four published systems' token ids and labels come out of prepared data and of raw files alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import mmtune
from mmtune.convert.run import convert
from mmtune.data.dataset import load_samples
from mmtune.data.prepare import prepare
from mmtune.data.sample import Sample
from tests.model import golden

CASES = [
    (golden.LLAVA, "data.json", "images", "inputs.safetensors", "", "vicuna_v1", "pad", "positions"),
    (golden.LLAVA, "pretrain.json", "images", "pretrain_inputs.safetensors", "", "plain", "pad", "positions"),
    (golden.VLORA, "data/sft.json", "data/images", "inputs.safetensors", "sft.", "vicuna_v1", "pad", 1),
    (golden.VLORA, "data/pretrain.json", "data/images", "inputs.safetensors", "pre.", "plain", "square", 1),
]


FORMS = ["prepared", "embedded", "slices", "raw"]


def samples_of(form: str, source: Path, folder: Path, **options: Any) -> Sequence[Sample]:
    """The rows of a source: prepared in one of several ways, or as they are."""
    if form == "raw":
        return load_samples(source, cache=folder, **options)
    if form == "slices":
        for part in (1, 2):
            prepare([source], folder / f"slice{part}", shard=(part, 2), **options)
        prepare([folder / "slice1", folder / "slice2"], folder / "out")
    else:
        prepare([source], folder / "out", embed_media=form == "embedded", check_media="decode", **options)
    return load_samples(folder / "out")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("case", "data", "images", "inputs", "prefix", "template", "aspect", "slots"), CASES)
def test_ids_and_labels_equal_the_originals(
    case, data, images, inputs, prefix, template, aspect, slots, form, tmp_path: Path
) -> None:
    samples = samples_of(form, case / data, tmp_path, media_root=[case / images])
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


@pytest.fixture(scope="module")
def lavin(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("lavin") / "model"
    convert(str(golden.GOLDEN / "lavin" / "a" / "checkpoint"), str(folder), from_format="lavin", verify=False)
    return mmtune.load(folder)


@pytest.mark.parametrize("form", FORMS)
def test_scienceqa_as_lavin_reads_it(lavin: Any, form: str, tmp_path: Path) -> None:
    model, processor = lavin
    case = golden.GOLDEN / "lavin" / "a"
    samples = samples_of(form, case / "data", tmp_path)
    inputs = golden.tensors(case / "inputs.safetensors")
    assert len(samples) == len(inputs["examples"])
    for row, sample in enumerate(samples):
        made = processor.encode(sample, template="lavin_sqa")
        pairs = zip(made.input_ids, made.labels or [], strict=True)
        said = [(token, label) for token, label in pairs if token != model.placeholder_ids["image"]]
        shown = bool(inputs["indicators"][row])
        assert (len(made.input_ids) > len(said)) == (len(sample.media) == 1) == shown
        length = int(inputs["example_len"][row])  # the original cuts rows at 128 positions
        example, label = inputs["examples"][row, :length].tolist(), inputs["labels"][row, :length].tolist()
        prefix = inputs["prefix_img" if shown else "prefix_nonimg"].tolist()
        expected = [*example[:1], *prefix, *example[1:]]
        trained = [0] * (1 + len(prefix)) + label[1:]
        assert [token for token, _ in said][: len(expected)] == expected
        assert [max(0, label) for _, label in said][: len(trained)] == trained


@pytest.fixture(scope="module")
def multi_token(tmp_path_factory: pytest.TempPathFactory) -> Any:
    case, folder = golden.GOLDEN / "multi_token" / "a", tmp_path_factory.mktemp("multi_token") / "model"
    encoders = {"vision_clip": str(case / "encoders" / "vision_clip")}
    convert(str(case / "checkpoint"), str(folder), encoders=encoders, verify=False)
    return mmtune.load(folder, device="cpu")


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_multi_token(multi_token: Any, form: str, tmp_path: Path) -> None:
    model, processor = multi_token
    case = golden.GOLDEN / "multi_token" / "a"
    samples = samples_of(form, case / "rows.jsonl", tmp_path)
    inputs = golden.tensors(case / "inputs.safetensors")
    assert len(samples) == 7
    for row in range(3):  # those that the original's figures are of
        made, ids = processor.encode(samples[row]), inputs[f"row{row}.input_ids"]
        assert made.input_ids == ids.masked_fill(ids < 0, model.placeholder_ids["image"]).tolist()
        assert made.labels[1:] == inputs[f"row{row}.labels"][1:].tolist()  # nothing predicts the first token
        pictures = torch.stack([item["pixel_values"] for item in made.media["image"]])
        torch.testing.assert_close(pictures, inputs[f"raw.vision_clip.{row}"], atol=1e-6, rtol=0)
