"""Files of answers as they are handed in: our own logs, with rows that were tried again, and ones that are no use."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mmtune.core.errors import DataError, UsageError
from mmtune.data.sample import conversation
from mmtune.evaluation.predictions import PredictionLog, read_predictions
from mmtune.evaluation.run import Limits, evaluate

ROWS = [conversation("Which?", gold, id=gold) for gold in ("red", "blue")]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def logged(row: int, key: str = "k", **record: Any) -> dict[str, Any]:
    return {"key": key, "row": row, "id": ROWS[row].id, "asked": "x", **record}


def test_a_row_that_was_tried_again_has_its_last_answer(tmp_path: Path) -> None:
    log = [logged(0, error={"message": "no memory"}), logged(1, prediction="blue"), logged(0, prediction="red")]
    found, ignored = read_predictions(write(tmp_path / "predictions.jsonl", log), ROWS)
    assert (found[0], found[1], ignored) == ({"prediction": "red"}, {"prediction": "blue"}, 0)


def test_a_log_of_two_evaluations_is_refused(tmp_path: Path) -> None:
    log = [logged(0, prediction="red"), logged(0, key="other", prediction="green")]
    with pytest.raises(DataError, match="2 evaluations"):
        read_predictions(write(tmp_path / "predictions.jsonl", log), ROWS)


def test_answers_with_other_ends_of_lines_are_read_back(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path / "predictions.jsonl", "k")
    answers = [{"prediction": "one\u2028two"}, {"prediction": "one\x85two\r\nthree"}]
    for row, answer in enumerate(answers):
        log.append(row, ROWS[row], answer)
    assert log.read() == dict(enumerate(answers))


@pytest.mark.parametrize(("answer", "words"), [(7, "is 7, not a text"), (None, "or no answer"), (["a"], "not a text")])
def test_answers_that_are_no_text(tmp_path: Path, answer: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_predictions(write(tmp_path / "p.jsonl", [{"id": "red", "prediction": answer}]), ROWS)


def test_a_minimum_that_is_no_number(tmp_path: Path) -> None:
    given = write(tmp_path / "p.jsonl", [{"id": row.id, "prediction": "red"} for row in ROWS])
    with pytest.raises(UsageError, match="nan"):
        evaluate(benchmark="qa", data=ROWS, predictions=given, limits=Limits(min_score=math.nan))
