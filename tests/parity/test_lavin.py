"""LaVIN against the published code: features, routes, logits, losses, gradients, a training step, prompts and answers.

The figures come from running the original on random weights (tests/golden/lavin). The copy here keeps two of the eight
blocks of its vision tower: class features are taken from the original where those of block 4 and 8 are needed, and what
happens inside the tower is compared up to its second block.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mmtune
from mmtune.convert.lavin import our_name
from mmtune.convert.run import convert
from mmtune.data.sample import Media, Sample, Text, Turn
from mmtune.model.generation import Decoding, answer
from tests.golden_logits import kept

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "lavin" / "a"
ROWS = json.loads((GOLDEN / "data" / "expected_prompts.json").read_text(encoding="utf-8"))
PICTURES = (0, 2)  # the rows of the batch that have one
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("lavin") / "model"
    found = convert(str(GOLDEN / "checkpoint"), str(target), from_format="lavin")
    assert found["verified"]["greedy_equal"]
    return target


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    return load_file(GOLDEN / "inputs.safetensors")


@pytest.fixture
def loaded(folder: Path) -> tuple[Any, Any]:
    """The converted model, seeing the class features that the original's whole tower gives."""
    model, processor = mmtune.load(folder)
    model.language_model.generation_config.eos_token_id = None
    modality = model.modalities["image"]
    encode = modality.encode

    def given_features(encoder: Any, given: dict[str, Any]) -> Any:  # the blank item has none
        return (given["features"], None, None) if "features" in given else encode(encoder, given)

    modality.encode = given_features
    return model, processor


def batch(
    model: Any, inputs: dict[str, Tensor], features: Tensor, order: Sequence[int] = (0, 1, 2, 3)
) -> dict[str, Any]:
    """The original's batch in our form: without the decision token, and pictures only where a row has one.

    Args:
        features: Class features ``[rows, 2, D]`` of the rows in this order.
    """
    ids, labels = [], []
    for row in order:
        example, label = inputs["examples"][row].tolist(), inputs["labels"][row].tolist()
        prefix = inputs["prefix_nonimg"].tolist()
        if row in PICTURES:
            prefix = inputs["prefix_img"].tolist() + [model.placeholder_ids["image"]] * features.shape[1]
        ids.append((example[:1] + prefix + example[1:])[: len(example) - 1])
        labels.append((label[:1] + [0] * len(prefix) + label[1:])[: len(label) - 1])
    places = [place for place, row in enumerate(order) if row in PICTURES]
    targets = torch.tensor(labels)
    found = {"input_ids": torch.tensor(ids), "labels": targets.masked_fill(targets == 0, -100)}
    if places:
        found["media"] = {"image": {"features": features[places], "owner": torch.tensor(places)}}
    return found


def prompts(model: Any, inputs: dict[str, Tensor], features: Tensor, order: Sequence[int]) -> dict[str, Any]:
    """The open prompts of these rows, padded on the left."""
    given = batch(model, inputs, features, order)
    slots = features.shape[1]
    lengths = [
        int(inputs["prompt_len"][row])
        + (len(inputs["prefix_img"]) + slots if row in PICTURES else len(inputs["prefix_nonimg"]))
        for row in order
    ]
    width = max(lengths)
    ids = torch.zeros(len(order), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, length in enumerate(lengths):
        ids[place, width - length :] = given["input_ids"][place, :length]
        mask[place, width - length :] = 1
    del given["labels"]
    return {**given, "input_ids": ids, "attention_mask": mask}


def test_prompts_and_labels(loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    _, processor = loaded
    for row, given in enumerate(ROWS):
        parts: tuple[Any, ...] = (Text(given["prompt"].removesuffix("\nResponse:")),)
        if given["indicator"]:
            parts = (Media("image", str(GOLDEN / "data" / "images" / "train" / given["qid"] / "image.png")), *parts)
        sample = Sample(given["qid"], (Turn("user", parts), Turn("assistant", (Text(given["answer"]),))))
        made = processor.encode(sample, template="lavin_sqa")
        found = [token for token in made.input_ids if token < 360]
        prefix = inputs["prefix_img" if given["indicator"] else "prefix_nonimg"].tolist()
        length = int(inputs["example_len"][row])
        example = inputs["examples"][row, :length].tolist()
        cut = len(prefix) + len(example)  # the original's rows end at 128 positions
        assert found[:cut] == example[:1] + prefix + example[1:]
        trained = [label for label in made.labels if label != -100]
        kept_labels = inputs["labels"][row, :length]
        assert trained[: int((kept_labels != 0).sum())] == kept_labels[kept_labels != 0].tolist()
        assert made.input_ids[-1] == made.labels[-1] == 2  # the EOS is learnt
        raw = processor.encode_prompt(
            Sample("0", (Turn("user", (*parts[:-1], Text(given["prompt"]))),)), template="raw"
        )
        assert raw.input_ids == made.input_ids[: len(raw.input_ids)]


def test_the_sequence(loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    model, _ = loaded
    given = batch(model, inputs, expected["train.clip_feats"])
    with torch.no_grad():
        perception = model.perceive(given["media"], 4)
        embedded = model._embed(given["input_ids"], None, None, perception)["inputs_embeds"]
    tokens = expected["train.image_embeds"][list(PICTURES)].flatten(0, 1)
    torch.testing.assert_close(perception.tokens["image"], tokens, atol=2e-5, rtol=0)
    wanted = expected["train.inputs_embeds"]  # each fourth position, the decision token the first
    torch.testing.assert_close(embedded[:, 3::4], wanted[:, 1:], atol=2e-5, rtol=0)
    torch.testing.assert_close(model.method.modality_embedding.weight[[1, 0, 1, 0]], wanted[:, 0], atol=0, rtol=0)
    routes = torch.stack([perception.routes[f"layers.{layer}.attention_norm"] for layer in range(3)], dim=1)
    torch.testing.assert_close(routes, expected["train.llm_router"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "order"), [("train", (0, 1, 2, 3)), ("train_rev", (3, 2, 1, 0))])
def test_logits_and_loss(
    loaded: tuple[Any, Any],
    inputs: dict[str, Tensor],
    expected: dict[str, Tensor],
    name: str,
    order: tuple[int, ...],
) -> None:
    model, _ = loaded
    with torch.no_grad():
        output = model(**batch(model, inputs, expected[f"{name}.clip_feats"], order))
    if name == "train":
        torch.testing.assert_close(kept(output.logits), expected["train.logits"][:, 1:], atol=2e-4, rtol=0)
    else:
        torch.testing.assert_close(
            kept(output.logits)[:, 7::8], expected[f"{name}.logits_sub8"][:, 1:], atol=2e-4, rtol=0
        )
    assert float(output.loss) == pytest.approx(float(expected[f"{name}.loss"]), abs=1e-5)


@pytest.mark.parametrize("row", range(4))
def test_samples_alone(
    loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor], row: int
) -> None:
    model, _ = loaded
    with torch.no_grad():
        output = model(**batch(model, inputs, expected["train_single.clip_feats"][row : row + 1], (row,)))
    assert float(output.loss) == pytest.approx(float(expected["train_single.loss"][row]), abs=1e-5)


def test_gradients_and_one_step(
    loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """In evaluation mode, as the figures were made; AdamW decays matrices only."""
    model, _ = loaded
    model.set_trainable(["method"])
    model(**batch(model, inputs, expected["train.clip_feats"])).loss.backward()
    owned = dict(model.method.named_parameters())
    stored = load_file(GOLDEN / "expected_grads.safetensors")
    wanted = {name.removeprefix("grad."): value for name, value in stored.items() if name.startswith("grad.")}
    assert len(wanted) == 3 * 8 + 5
    for name, value in wanted.items():
        found = owned[our_name(name)].grad.reshape(value.shape)
        assert float((found - value).abs().max() / value.abs().max()) < 1e-3, name
    named = [owned[our_name(name)] for name in wanted]
    groups = [
        {"params": [parameter for parameter in named if parameter.ndim > 1], "weight_decay": 0.02},
        {"params": [parameter for parameter in named if parameter.ndim == 1], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=0.001125, betas=(0.9, 0.95), eps=1e-8).step()
    for name in wanted:
        value = stored[f"step1.{name}"]
        torch.testing.assert_close(owned[our_name(name)].detach().reshape(value.shape), value, atol=2e-5, rtol=0)


@pytest.mark.parametrize("row", range(4))
def test_answers(loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor], row: int) -> None:
    model, _ = loaded
    given = prompts(model, inputs, expected["train_single.clip_feats"][row : row + 1], (row,))
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    assert model.generate(**given, **options)[0].tolist() == expected["clean_greedy.new_ids"][row].tolist()
    original = model.generate(**given, positions="original", **options)[0].tolist()
    start = int(expected[f"gen_single{row}.prompt_lens"][0])
    assert original == expected[f"gen_single{row}.token_ids"][0, start : start + NEW_TOKENS].tolist()


def test_answers_of_a_batch_at_the_original_positions(
    loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """The published decoding lets the shortest prompt shift the others."""
    model, _ = loaded
    given = prompts(model, inputs, expected["train.clip_feats"], (0, 1, 2, 3))
    made = model.generate(**given, positions="original", max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    for row, ids in enumerate(made.tolist()):
        start = int(expected["gen.prompt_lens"][row])
        assert ids == expected["gen.token_ids"][row, start : start + NEW_TOKENS].tolist()


def test_answers_from_prompts(loaded: tuple[Any, Any], expected: dict[str, Tensor]) -> None:
    """From the text of a raw prompt to the answer, the method's prefix added on the way."""
    model, processor = loaded
    text_rows = [row for row in range(4) if row not in PICTURES]
    samples = [Sample(str(row), (Turn("user", (Text(ROWS[row]["prompt"]),)),)) for row in text_rows]
    decoding = Decoding(max_new_tokens=NEW_TOKENS, template="raw")
    for row, found in zip(text_rows, answer(model, processor, samples, decoding), strict=True):
        wanted = expected["clean_greedy.new_ids"][row].tolist()
        assert found.token_ids == wanted[: len(found.token_ids)]
        assert found.prompt == "Image: N/A" + ROWS[row]["prompt"]
        assert found.prompt_tokens == int(expected["gen.prompt_lens"][row])


@pytest.mark.parametrize(("routing", "first"), [("batch0", 0), ("batch0", 1), ("per_sample", None)])
def test_routes_inside_the_encoder(
    folder: Path,
    inputs: dict[str, Tensor],
    expected: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    routing: str,
    first: int | None,
) -> None:
    """The published code lets the first sample decide for the batch, an all-black picture where it has none."""
    model, _ = mmtune.load(folder)
    target = folder.parent / routing
    if routing == "batch0" and not target.exists():
        convert(
            str(GOLDEN / "checkpoint"), str(target), from_format="lavin", settings={"lavin.routing": routing},
            verify=False,
        )  # fmt: skip
    if routing == "batch0":
        model, _ = mmtune.load(target)
    seen: list[Tensor] = []
    for adapter in model.method.adapters["image"]:
        original = adapter.route
        monkeypatch.setattr(adapter, "route", lambda x, original=original: seen.append(original(x)) or seen[-1])
    rows = (0, 2) if not first else (1, 3)  # places of the pictures; reversed, a row of text comes first
    images = inputs["images"] if not first else inputs["images"].flip(0)
    with torch.no_grad():
        model.perceive({"image": {"pixel_values": images, "owner": torch.tensor(rows)}}, 4)
    if routing == "batch0":
        wanted = expected["train_rev.vis_router" if first else "train.vis_router"]
        torch.testing.assert_close(torch.stack([weights[0] for weights in seen]), wanted, atol=1e-6, rtol=0)
    else:  # picture 0 routes as it did where it came first; the other one by itself
        torch.testing.assert_close(
            torch.stack([weights[0] for weights in seen]), expected["train.vis_router"], atol=1e-6, rtol=0
        )
        assert not torch.allclose(seen[0][0], seen[0][1], atol=1e-3)
