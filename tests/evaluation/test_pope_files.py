"""POPE as it is released, one file a category, and LLaVA's questions with their own numbers beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmtune.evaluation.run import evaluate

CATEGORIES = ("adversarial", "popular", "random")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def released(folder: Path) -> list[dict[str, Any]]:
    """Writes the official files, whose numbers begin anew in each; returns LLaVA's questions, numbered through."""
    questions = []
    for category in CATEGORIES:
        rows = []
        for number, label in enumerate(("yes", "no", "no"), start=1):
            text = f"Is there a thing {number} in the image?"
            rows.append({"question_id": number, "image": "COCO_1.jpg", "text": text, "label": label})
            asked = {"question_id": len(questions) + 1, "image": "COCO_1.jpg", "category": category}
            questions.append(asked | {"text": f"{text}\nAnswer the question using a single word or phrase."})
        write(folder / f"coco_pope_{category}.json", rows)
    return questions


@pytest.mark.parametrize("inside", ["coco", "."])
def test_llava_questions_are_matched_by_what_they_ask(tmp_path: Path, inside: str) -> None:
    questions = write(tmp_path / "llava_pope_test.jsonl", released(tmp_path / inside))
    # Right on all of adversarial, wrong on all of popular, always "yes" on random.
    said = ["Yes", "No", "No", "No", "Yes", "Yes", "Yes", "Yes", "Yes"]
    answers = [{"question_id": at, "text": text} for at, text in enumerate(said, start=1)]
    given = write(tmp_path / "answers.jsonl", answers)
    places = [questions, tmp_path] if inside == "coco" else [questions]
    for place in places:
        scores = evaluate(benchmark="pope", data=place, predictions=given)["scores"]
        assert [scores[name]["accuracy"] for name in CATEGORIES] == [1, 0, pytest.approx(1 / 3)]


def test_one_official_file_alone(tmp_path: Path) -> None:
    released(tmp_path)
    given = write(tmp_path / "answers.jsonl", [{"question_id": at, "answer": "No"} for at in (1, 2, 3)])
    found = evaluate(benchmark="pope", data=tmp_path / "coco_pope_popular.json", predictions=given)
    assert found["scores"]["popular"]["accuracy"] == pytest.approx(2 / 3)
    assert found["scores"]["mean"]["f1"] == 0
