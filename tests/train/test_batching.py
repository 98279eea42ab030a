"""Which rows share a batch: little padding, every row once, the original's order, nothing lost among processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmtune.train.batching import Batching, RowLengths, padding_share
from mmtune.train.orders import length_grouped, modality_grouped
from mmtune.train.team import share_of

GOLDEN = Path(__file__).parents[1] / "golden/llava/a/sampler.json"


def skewed(rows: int = 2000, seed: int = 0) -> RowLengths:
    """Lengths from 10 to 1,000, short ones by far the most; a third of the rows without media."""
    generator = np.random.default_rng(seed)
    positions = np.exp(generator.uniform(np.log(10), np.log(1000), rows)).astype(np.int64)
    media = np.where(np.arange(rows) % 3 > 0, 16, 0)
    return RowLengths(positions, positions // 2, media, np.where(media > 0, -positions, positions))


def order_of(lengths: RowLengths, epoch: int = 0) -> list[int]:
    return torch.randperm(len(lengths), generator=torch.Generator().manual_seed(epoch)).tolist()


def cases() -> list[dict[str, Any]]:
    return json.loads(GOLDEN.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("rows", [300, 2000])
@pytest.mark.parametrize("options", [{"batch_size": 8}, {"batch_size": 1, "tokens": 4000}])
def test_grouping_leaves_little_padding(rows: int, options: dict[str, int]) -> None:
    lengths = skewed(rows)
    order = order_of(lengths)
    random = Batching(8).batches(order, 0)
    grouped = Batching(grouping="length", lengths=lengths, **options).batches(order, 0)  # type: ignore[arg-type]
    assert padding_share(random, lengths.positions) > 0.4
    assert padding_share(grouped, lengths.positions) <= 0.1


@pytest.mark.parametrize(
    ("grouping", "tokens"), [("none", None), ("none", 3000), ("length", None), ("length", 3000), ("modality", None)]
)
def test_every_row_once_and_the_same_for_the_same_seed(grouping: Any, tokens: int | None) -> None:
    lengths = skewed(501)
    batching = Batching(4, 2, grouping, tokens, lengths, seed=3)
    first, second = (batching.batches(order_of(lengths, epoch), epoch) for epoch in (0, 1))
    assert sorted(row for batch in first for row in batch) == list(range(501))
    assert sorted(row for batch in second for row in batch) == list(range(501))
    assert first == batching.batches(order_of(lengths), 0) != second
    if grouping != "none":
        assert first != replace(batching, seed=4).batches(order_of(lengths), 0)


def test_no_batch_is_larger_than_its_tokens_and_most_are_nearly_full() -> None:
    lengths = skewed()
    batches = Batching(1, grouping="length", tokens=2000, lengths=lengths).batches(order_of(lengths), 0)
    areas = [len(batch) * int(lengths.positions[batch].max()) for batch in batches]
    assert max(areas) <= 2000
    assert np.median(areas) > 1600
    assert max(int(lengths.media[batch].sum()) for batch in batches) <= 2000
    assert areas[0] == max(areas)  # what does not fit is met at once


def test_media_count_where_they_are_longer_than_text() -> None:
    """A picture of 576 patches fills a batch even where it is a single position of the language model."""
    short = np.full(40, 20)
    lengths = RowLengths(short, short // 2, np.full(40, 576), -short)
    batches = Batching(1, tokens=2304, lengths=lengths).batches(range(40), 0)
    assert [len(batch) for batch in batches] == [4] * 10


@pytest.mark.parametrize("processes", [2, 3, 4, 5])
def test_processes_share_each_step_and_leave_no_row_out(processes: int) -> None:
    lengths = skewed(203)
    batches = Batching(8, grouping="length", lengths=lengths).batches(order_of(lengths), 0)
    for step in (batches[start : start + 4] for start in range(0, len(batches), 4)):
        shares = [share_of(step, rank, processes) for rank in range(processes)]
        assert len({len(share) for share in shares}) == 1
        assert sorted(row for share in shares for part in share for row in part) == sorted(
            row for part in step for row in part
        )


@pytest.mark.parametrize("index", range(4))
def test_orders_are_those_of_the_original(index: int) -> None:
    found = cases()[index]
    lengths, size, world = found["lengths"], found["batch_size"], found["world_size"]
    within = torch.Generator().manual_seed(found["global_seed"])
    generator = torch.Generator().manual_seed(found["generator_seed"])
    assert modality_grouped(lengths, size, world, generator, within) == found["modality_indices"]
    torch.manual_seed(found["global_seed"])  # and with torch's own generator, as the original has it
    generator.manual_seed(found["generator_seed"])
    assert modality_grouped(lengths, size, world, generator) == found["modality_indices"]
    generator.manual_seed(found["generator_seed"])
    assert length_grouped([abs(length) for length in lengths], size, world, generator) == found["length_indices"]


def test_batches_of_the_original_order_hold_one_modality() -> None:
    lengths = skewed(240)
    batches = Batching(8, 1, "modality", None, lengths).batches(order_of(lengths), 0)
    kinds = [len({bool(lengths.media[row]) for row in batch}) for batch in batches]
    assert sum(kind == 2 for kind in kinds) <= 2  # what is left over of both stands at the end
    assert all(kind == 1 for kind in kinds[:-2])


def test_a_row_without_length_is_refused() -> None:
    with pytest.raises(ValueError, match="length 0"):
        modality_grouped([1, 0, -2], 1, 1, torch.Generator())
