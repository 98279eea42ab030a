"""multi_token against the published code: encodings, embeddings, logits, losses, gradients and all greedy answers.

The figures come from running the original (tests/golden/multi_token); its README gives the tolerances.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mmtune
from mmtune.convert.run import convert
from mmtune.data.messages import sample_of_messages
from mmtune.model.decoding import Decoding
from mmtune.model.generation import answer
from tests.golden_logits import kept

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "multi_token" / "a"
VISION = {"vision_clip": str(GOLDEN / "encoders" / "vision_clip")}
HASH = -1626  # the original's placeholder of <image>
ROWS = 3


def converted(folder: Path, to: str | None = None) -> tuple[Any, Any]:
    convert(str(GOLDEN / "checkpoint"), str(folder), encoders=VISION, to=to, verify=False)
    return mmtune.load(folder, device="cpu", attention="eager")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return converted(tmp_path_factory.mktemp("lora") / "model")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return converted(tmp_path_factory.mktemp("merged") / "model", "merged")


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    return load_file(GOLDEN / "inputs.safetensors")


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


def batch(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The original's collated batch in our form."""
    pictures = [inputs[f"raw.vision_clip.{row}"] for row in range(ROWS)]
    owner = torch.tensor([row for row, given in enumerate(pictures) for _ in given])
    ids = inputs["input_ids"]
    return {
        "input_ids": ids.masked_fill(ids == HASH, model.placeholder_ids["image"]),
        "attention_mask": inputs["attention_mask"],
        "labels": inputs["labels"],
        "media": {"image": {"pixel_values": torch.cat(pictures), "owner": owner}},
    }


def pictures(row: dict[str, Any]) -> dict[str, list[str]]:
    return {"image": [str(GOLDEN / path) for path in row["images"]]}


def samples() -> list[Any]:
    found = []
    for line in (GOLDEN / "rows.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]:
        row = json.loads(line)
        found.append(sample_of_messages(row["messages"], id=row["id"], media=pictures(row)))
    return found


def test_rows_become_the_originals_batch(loaded: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    model, processor = loaded
    made = processor.collate([processor.encode(sample) for sample in samples()])
    theirs = batch(model, inputs)
    assert torch.equal(made["input_ids"], theirs["input_ids"])
    assert torch.equal(made["attention_mask"], theirs["attention_mask"])
    assert torch.equal(made["labels"][:, 1:], theirs["labels"][:, 1:])  # nothing predicts the first token
    torch.testing.assert_close(
        made["media"]["image"]["pixel_values"], theirs["media"]["image"]["pixel_values"], atol=1e-6, rtol=0
    )


def test_features_tokens_and_embeddings(
    loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    model, _ = loaded
    given = batch(model, inputs)
    with torch.no_grad():
        seen, _, _ = model.modalities["image"].encode(model.encoders["image"], given["media"]["image"])
        tokens = model.perceive(given["media"], ROWS).tokens["image"]
    theirs = {name: torch.cat([expected[f"{name}.vision_clip.{row}"] for row in range(ROWS)]) for name in
              ("encoded", "projected")}  # fmt: skip
    torch.testing.assert_close(seen, theirs["encoded"], atol=2e-5, rtol=0)
    torch.testing.assert_close(tokens, theirs["projected"].flatten(0, 1), atol=2e-5, rtol=0)
    spliced = {}
    hook = model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: spliced.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(**given)
    hook.remove()
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(spliced["inputs_embeds"][real], expected["inputs_embeds"][real], atol=2e-5, rtol=0)


@pytest.mark.parametrize("form", ["loaded", "merged"])
def test_logits_and_loss(
    form: str, request: pytest.FixtureRequest, inputs: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    model, _ = request.getfixturevalue(form)
    with torch.no_grad():
        output = model(**batch(model, inputs))
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(kept(output.logits)[real], expected["logits"][real], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.loss, expected["loss"][0], atol=1e-5, rtol=0)


def test_the_projector_alone(loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    model, _ = loaded
    model.language_model.disable_adapters()
    with torch.no_grad():
        output = model(**batch(model, inputs))
    model.language_model.enable_adapters()
    torch.testing.assert_close(output.loss, expected["no_adapter.loss"][0], atol=1e-5, rtol=0)


def test_gradients_of_the_projector(
    merged: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    model, _ = merged
    model.set_trainable(["method"])
    model(**batch(model, inputs)).loss.backward()
    for name, parameter in model.method.projector["image"].layers.named_parameters():
        theirs = expected[f"grad.vision_clip_lmm_projector.{name}"]
        torch.testing.assert_close(parameter.grad, theirs, atol=1e-5, rtol=1e-3)
    model.zero_grad(set_to_none=True)


def test_gradients_of_the_lora(loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    model, _ = loaded
    model.set_trainable(["method", "lora"])
    model.eval()  # without dropout, as they were taken
    model(**batch(model, inputs)).loss.backward()
    compared = 0
    for name, parameter in model.language_model.named_parameters():
        theirs = expected.get(f"grad.base_model.model.{name.replace('.default', '')}")
        if theirs is not None:
            torch.testing.assert_close(parameter.grad, theirs, atol=1e-5, rtol=1e-3)
            compared += 1
    assert compared == 2 * 7 * 2  # A and B of seven maps in the two layers that are kept
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("batch_size", [1, 6])
def test_requests_are_answered_as_by_the_original(
    loaded: tuple[Any, Any], expected: dict[str, Tensor], batch_size: int
) -> None:
    answers = json.loads((GOLDEN / "e2e.json").read_text(encoding="utf-8"))
    requests = json.loads((GOLDEN / "requests.json").read_text(encoding="utf-8"))
    asked = [
        sample_of_messages(
            each["messages"], id=str(at), media={"image": [str(GOLDEN / path) for path in each["images"]]}
        )
        for at, each in enumerate(requests)
    ]
    found = answer(*loaded, asked, Decoding(max_new_tokens=40), batch_size=batch_size)
    for at, given in enumerate(found):
        theirs = answers[f"gen{at}"]
        assert given.token_ids == theirs["new_ids"] == expected[f"gen{at}.new_ids"][0].tolist()
        assert given.text == theirs["answer"]
        assert f"<s>{given.prompt}" == theirs["prompt"]


def test_prompt_logits(loaded: tuple[Any, Any], expected: dict[str, Tensor]) -> None:
    model, processor = loaded
    requests = json.loads((GOLDEN / "requests.json").read_text(encoding="utf-8"))
    for at, each in enumerate(requests):
        sample = sample_of_messages(each["messages"], media=pictures(each))
        made = processor.collate([processor.encode_prompt(sample)])
        del made["ids"]
        with torch.no_grad():
            logits = model(**made).logits
        torch.testing.assert_close(kept(logits), expected[f"gen{at}.prompt_logits"], atol=1e-4, rtol=0)
