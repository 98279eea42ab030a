"""Packed rows give the loss and the gradients of padded ones, where they may be packed at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune.core.errors import NotPossibleError
from mmtune.model.encoding import packed
from mmtune.train.batching import Batching, RowLengths
from mmtune.train.data_setup import make_data
from mmtune.train.display import LoggingDisplay
from mmtune.train.model_setup import make_model, refuse_impossible
from mmtune.train.recipe import Recipe
from mmtune.train.run import train
from tests.tiny import save_tiny_lm

Make = Callable[..., Recipe]
CPU = torch.device("cpu")


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    loss = model(**{key: value for key, value in batch.items() if key != "ids"}, target_logits_only=True).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "cohere2", "granite"])
@pytest.mark.parametrize("method", ["llava", "multi_token"])
def test_packed_rows_do_not_see_each_other(family: str, method: str, recipe: Make, tmp_path: Path) -> None:
    base = save_tiny_lm(tmp_path / "lm", family)
    named = recipe(method, model__base=base, data__template="vlora", train__packing=True, train__batch_size=12)
    model, processor = make_model(named, "fp32", CPU)
    data = make_data(named, "finetune", model, processor, CPU, LoggingDisplay())
    samples = [data.feed.mixture.row(index) for index in (0, 11, 1, 10, 2)]  # two of them without a picture
    batch = processor.collate([processor.encode(sample) for sample in samples])
    narrow = packed(batch)
    assert narrow["input_ids"].shape == (1, int(batch["attention_mask"].sum()))
    loss, gradients = loss_and_gradients(model, batch)
    found, others = loss_and_gradients(model, narrow)
    torch.testing.assert_close(found, loss, rtol=0, atol=1e-5)
    for one, other in zip(others, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_packed_run_learns_what_a_padded_one_learns(recipe: Make, tmp_path: Path) -> None:
    losses = []
    for packing in (False, True):
        folder = tmp_path / str(packing)
        train(recipe(data__template="vlora", train__packing=packing), output=folder)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows])
        if packing:
            assert all(row["padding"] == 0 for row in rows)
            assert sum(row["samples"] for row in rows) == 24
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("method", ["vlora", "lavin"])
def test_methods_that_act_on_whole_rows_say_no(method: str, recipe: Make) -> None:
    with pytest.raises(NotPossibleError, match="whole row of the batch"):
        refuse_impossible(recipe(method, train__packing=True), CPU)


def test_language_models_that_mix_packed_rows_say_no(recipe: Make, tmp_path: Path) -> None:
    named = recipe(model__base=save_tiny_lm(tmp_path / "lm", "bloom"), train__packing=True, data__template="vlora")
    with pytest.raises(NotPossibleError, match="packed rows see each other"):
        make_model(named, "fp32", CPU)


def test_tokens_of_packed_batches_have_no_padding() -> None:
    lengths = torch.tensor([30, 50, 20, 60, 40]).numpy()
    rows = RowLengths(lengths, lengths, lengths * 0, lengths)
    assert Batching(1, tokens=100, lengths=rows, packed=True).batches(range(5), 0) == [[0, 1, 2], [3, 4]]
    assert Batching(1, tokens=100, lengths=rows).batches(range(5), 0) == [[0, 1], [2], [3], [4]]
