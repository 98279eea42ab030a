"""Exact match and containment, by type and as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample, conversation
from mmtune.evaluation.benchmarks.qa import QuestionAnswering, normalized, verdict


@pytest.mark.parametrize(
    ("said", "gold", "exact", "contains"),
    [
        ("Red", "red", 1, 1),
        ("red.", "red", 1, 1),
        (" RED!? \n", "red.", 1, 1),
        ("The red one.", "red", 0, 1),
        ("blue", "red", 0, 0),
        ("", "red", 0, 0),
        ("top left", "Top left.", 1, 1),
        ("1.5", "1.5", 1, 1),
        ("猫。", "猫", 1, 1),
    ],
)
def test_verdicts(said: str, gold: str, exact: int, contains: int) -> None:
    assert verdict(said, gold) == {"exact_match": exact, "contains": contains}


def test_only_final_punctuation_is_ignored() -> None:
    assert normalized("It's 3.5, or so.") == "it's 3.5, or so"


def typed(question: str, gold: str, kind: str | None, id: str) -> Sample:
    return replace(conversation(question, gold, id=id), extra={} if kind is None else {"type": kind})


def test_scores_by_type_and_their_mean() -> None:
    samples = [typed("a?", "x", "one", "0"), typed("b?", "y", "one", "1"), typed("c?", "z", "two", "2")]
    records: list[dict[str, Any]] = [{"prediction": "x"}, {"prediction": "no"}, {"prediction": "a z"}]
    found = QuestionAnswering().score(samples, records)
    assert found.scores["exact_match"] == pytest.approx(1 / 3)
    assert found.scores["contains"] == pytest.approx(2 / 3)
    assert found.scores["types"] == {
        "one": {"exact_match": 0.5, "contains": 0.5, "n": 2},
        "two": {"exact_match": 0.0, "contains": 1.0, "n": 1},
    }
    assert found.scores["mean_over_types"] == {"exact_match": 0.25, "contains": 0.75}
    assert [item["exact_match"] for item in found.items] == [1, 0, 0]
    assert found.confidence["exact_match"]["low"] < 1 / 3 < found.confidence["exact_match"]["high"]


def test_rows_without_types_have_no_scores_by_type() -> None:
    found = QuestionAnswering().score([typed("a?", "x", None, "0")], [{"prediction": "x"}])
    assert set(found.scores) == {"exact_match", "contains"}


def test_a_failed_row_is_wrong_and_keeps_its_error() -> None:
    found = QuestionAnswering().score([typed("a?", "x", None, "0")], [{"error": {"message": "no picture"}}])
    assert found.scores["exact_match"] == 0
    assert found.items[0]["error"] == {"message": "no picture"}


@pytest.mark.parametrize("turns", [("only a question",), ("a?", "b", "c?"), ("a?", " . ")])
def test_a_row_without_gold_is_refused(turns: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="gold") as caught:
        QuestionAnswering().check([conversation(*turns, id="r7")])
    assert "r7" in str(caught.value.where)


def test_earlier_turns_are_history() -> None:
    QuestionAnswering().check([conversation("a?", "b", "c?", "d")])
