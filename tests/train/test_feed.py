"""The order of batches is a pure function of seed and step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample, conversation
from mmtune.model.encoding import Batch, Encoded
from mmtune.train.batching import Batching
from mmtune.train.feed import Encoding, Feed, Mixture


class Rows:
    def __init__(self, name: str, count: int) -> None:
        self._name, self._count = name, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        return conversation("q", "a", id=f"{self._name}{index}")


class Letters:
    """A processor that only knows ids; rows that end in 3 are broken."""

    def encode_all(self, samples: Sequence[Sample], **options: object) -> list[Encoded | DataError]:
        return [
            DataError("broken", where=sample.id) if sample.id.endswith("3") else Encoded(sample.id, [1], [1])
            for sample in samples
        ]

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        return Batch(ids=[row.id for row in rows])


def feed(
    tables: Sequence[Rows], weights: Sequence[float], accumulation: int = 1, workers: int = 0, seed: int = 0
) -> Feed:
    mixture = Mixture(tables, weights, seed)
    return Feed(Encoding(mixture, Letters(), {}), mixture, Batching(2, accumulation), workers)  # type: ignore[arg-type]


def take(found: Feed, first: int, count: int) -> list[list[list[str]]]:
    steps = found.steps(first)
    return [[micro.batch["ids"] if micro.batch else [] for micro in next(steps)] for _ in range(count)]


def test_each_row_once_an_epoch_and_another_order_in_the_next() -> None:
    found = feed([Rows("a", 7)], [1.0])
    assert found.steps_per_epoch == 4
    first, second = take(found, 0, 4), take(found, 4, 4)
    rows = sorted(name for step in first for batch in step for name in batch)
    assert rows == sorted(f"a{index}" for index in range(7) if index != 3)
    assert first != second
    assert take(feed([Rows("a", 7)], [1.0], seed=1), 0, 4) != first


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_going_on_at_any_step_gives_the_same_steps(accumulation: int) -> None:
    found = feed([Rows("a", 9), Rows("b", 4)], [1.0, 1.5], accumulation)
    everything = take(found, 0, 12)
    for first in range(12):
        assert take(found, first, 12 - first) == everything[first:]


def test_weights_repeat_rows() -> None:
    mixture = Mixture([Rows("a", 4), Rows("b", 10)], [2.5, 0.3], 0)
    assert mixture.epoch_size == 13
    names = [mixture.row(index).id for index in mixture.order(0)]
    assert sum(name.startswith("b") for name in names) == 3
    assert {names.count(f"a{index}") for index in range(4)} == {2, 3}
    assert sorted(mixture.order(0)) != sorted(mixture.order(1))


def test_broken_rows_come_along_with_their_error() -> None:
    found = feed([Rows("a", 4)], [1.0], accumulation=2)
    rejected = [row for micro in next(found.steps(0)) for row in micro.rejected]
    assert [(row.id, row.error.message) for row in rejected] == [("a3", "broken")]


def test_workers_change_nothing() -> None:
    alone, helped = feed([Rows("a", 9)], [1.0]), feed([Rows("a", 9)], [1.0], workers=2)
    assert take(helped, 1, 5) == take(alone, 1, 5)
    steps = helped.steps(0)
    errors = [row.error.where for _ in range(5) for micro in next(steps) for row in micro.rejected]
    steps.close()
    assert errors == ["a3"]


def test_rows_are_kept_within_a_budget() -> None:
    found = feed([Rows("a", 3)], [1.0])
    keeping = Encoding(found.mixture, Letters(), {}, keep_bytes=40)  # type: ignore[arg-type]
    first = [keeping[index] for index in range(3)]
    again = [keeping[index] for index in range(3)]
    assert [one is other for one, other in zip(first, again, strict=True)] == [True, True, False]
