"""VLoRA against the published code: factors, logits, losses, gradients, training steps and all greedy answers.

The figures come from running the original on random weights (tests/golden/vlora). Its README gives the tolerances; the
eager path is the reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mmtune
from mmtune.convert.run import convert
from mmtune.data.sample import Sample, Text, Turn
from tests.golden_logits import kept

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vlora" / "a"
TYPES = "qkvom"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The reference ran on one thread; Adam amplifies another order of summation within four steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("vlora") / "model"
    convert(str(GOLDEN / "checkpoint"), str(folder), verify=False)
    return mmtune.load(folder, attention="eager")


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    return load_file(GOLDEN / "inputs.safetensors")


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


def batch(model: Any, inputs: dict[str, Tensor], name: str) -> dict[str, Any]:
    """The original's collated batch in our form: pictures only where a row has one."""
    ids = inputs[f"{name}.input_ids"]
    rows = (ids == -200).any(-1).nonzero().squeeze(-1)
    return {
        "input_ids": ids.masked_fill(ids == -200, model.placeholder_ids["image"]),
        "attention_mask": inputs[f"{name}.attention_mask"],
        "labels": inputs[f"{name}.labels"],
        "media": {"image": {"pixel_values": inputs[f"{name}.images"][rows], "owner": rows}},
    }


def test_factors(loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    model, _ = loaded
    with torch.no_grad():
        deltas = model.perceive(batch(model, inputs, "sft")["media"], 4).deltas
    assert set(deltas) == {f"layers.{layer}.{kind}" for layer in (1, 3) for kind in TYPES}
    for name, delta in deltas.items():
        _, layer, kind = name.split(".")
        torch.testing.assert_close(delta.a[0], expected[f"delta.{layer}.{kind}.A"], atol=1e-4, rtol=0)
        torch.testing.assert_close(delta.b[0].T, expected[f"delta.{layer}.{kind}.B"], atol=1e-4, rtol=0)
        assert not delta.a[2].any()  # a row of text alone gets exactly the plain language model


@pytest.mark.parametrize("name", ["sft", "pre"])
def test_logits_and_loss(
    loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor], name: str
) -> None:
    model, _ = loaded
    given = batch(model, inputs, name)
    with torch.no_grad():
        output = model(**given)
    real = given["attention_mask"].bool()
    torch.testing.assert_close(kept(output.logits)[real], expected[f"{name}.logits"][real], atol=5e-3, rtol=0)
    assert float(output.loss) == pytest.approx(float(expected[f"{name}.loss"]), abs=1e-4)


def test_gradients(loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    model, _ = loaded
    model.set_trainable(["method", "language"])
    model.zero_grad()
    model(**batch(model, inputs, "sft")).loss.backward()
    found = gradients(model)
    wanted = {name.removeprefix("grad."): value for name, value in expected.items() if name.startswith("grad.")}
    assert len(wanted) > 200
    for name, value in wanted.items():
        difference = float((found[name] - value).norm() / value.norm().clamp(min=1e-12))
        assert difference < 1e-3, f"{name}: {difference:.1e}"
    total = torch.stack([value.norm() for value in found.values()]).norm()
    assert float(total) == pytest.approx(float(expected["grad_total_norm"]), rel=1e-3)
    model.zero_grad()


def gradients(model: Any) -> dict[str, Tensor]:
    """Our gradients under the original's names."""
    found = {name: p.grad for name, p in model.language_model.named_parameters()}
    changes = [
        (r"^decoders\.(\d+)\.blocks\.", r"gen.\1.decoders."),
        (r"^decoders\.", "gen."),
        ("visual_projection", "visual_proj"),
        ("position_embedding", "pos_embed"),
        ("self_attention", "self_attn"),
        ("cross_attention", "multihead_attn"),
        ("feed_forward_in", "linear1"),
        ("feed_forward_out", "linear2"),
        (r"\.head\.", ".weights_head."),
    ]
    for name, parameter in model.method.generator.named_parameters():
        for ours, original in changes:
            name = re.sub(ours, original, name)
        found[f"model.mm_projector.{name}"] = parameter.grad
    delta_b = torch.cat([model.method.delta_b[kind].grad.flatten(1) for kind in TYPES])
    found["model.mm_projector.Bs"] = delta_b.unsqueeze(0)
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(("positions", "key"), [("original", "gen.cached"), ("training", "gen.train_positions")])
def test_greedy_answers(
    loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor], positions: str, key: str
) -> None:
    model, _ = loaded
    ids = inputs["gen.input_ids"]
    media = {"image": {"pixel_values": inputs["gen.images"], "owner": torch.tensor([0])}}
    ids = ids.masked_fill(ids == -200, model.placeholder_ids["image"])
    found = model.generate(ids, media=media, positions=positions, max_new_tokens=24, do_sample=False)
    assert found.tolist() == expected[f"{key}.new_ids"].tolist()


@pytest.mark.parametrize("positions", ["original", "training"])
def test_text_alone_needs_no_picture(
    loaded: tuple[Any, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor], positions: str
) -> None:
    model, _ = loaded
    found = model.generate(inputs["gen_text.input_ids"], positions=positions, max_new_tokens=24, do_sample=False)
    assert found.tolist() == expected["gen_text.new_ids"].tolist()


def test_text_and_picture_rows_train_together(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    rows = [Sample(str(i), (Turn("user", (Text("a"),)), Turn("assistant", (Text("b"),)))) for i in range(2)]
    given = processor.collate([processor.encode(row) for row in rows])
    given.pop("ids", None)
    with torch.no_grad():
        assert torch.isfinite(model(**given).loss)


def test_four_training_steps(tmp_path: Path, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    convert(str(GOLDEN / "checkpoint"), str(tmp_path / "model"), verify=False)
    model, _ = mmtune.load(tmp_path / "model", attention="eager")
    model.set_trainable(["method"])
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    given = batch(model, inputs, "pre")
    for step, wanted in enumerate(expected["train_pre.losses"].tolist()):
        optimizer.zero_grad()
        loss = model(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        assert float(loss.detach()) == pytest.approx(wanted, abs=1e-4 if step == 0 else 3e-2)
