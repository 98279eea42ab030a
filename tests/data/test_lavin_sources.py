"""ScienceQA's folder and LaVIN's mixture, against the prompts that the published code builds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtune.core.errors import DataError, UsageError
from mmtune.data.dataset import load_samples
from mmtune.data.prepare import prepare
from mmtune.data.sample import Media
from mmtune.data.sources import load_format
from mmtune.data.sources.scienceqa import PROMPT_FORMATS, question, solution

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "lavin" / "a" / "data"
PROBLEM: dict[str, Any] = {
    "question": "Which  one?", "choices": ["box", "red chair"], "answer": 1, "hint": "Look.", "lecture": "L1\nL2",
    "solution": "S", "caption": "A room.", "image": None,
}  # fmt: skip


def test_the_published_prompts() -> None:
    table = load_samples(GOLDEN)
    expected = json.loads((GOLDEN / "expected_prompts.json").read_text(encoding="utf-8"))
    assert len(table) == len(expected)
    for index, wanted in enumerate(expected):
        sample = table[index]
        assert sample.id == wanted["qid"]
        assert sample.turns[0].text + "\nResponse:" == wanted["prompt"]
        assert sample.answer == wanted["answer"]
        shown = [Path(part.uri) for part in sample.media if isinstance(part, Media)]
        assert [path.parts[-2:] for path in shown] == [(wanted["qid"], "image.png")] * wanted["indicator"]
        assert sample.extra["subject"]


@pytest.mark.parametrize(
    ("prompt_format", "lines", "answer"),
    [
        ("QCM-A", ["Question: Which one?", "Context: Look.", "Options: (A) box (B) red chair"], "The answer is B."),
        ("CQM-LA", ["Context: Look.", "Question: Which one?", "Options: (A) box (B) red chair"],
         "L1\\nL2 The answer is B."),
        ("QCM-ALE", None, "The answer is B. BECAUSE: L1\\nL2 S"),
        ("QCM-AL", None, "The answer is B. BECAUSE: S"),  # swapped, as published
        ("QCM-AE", None, "The answer is B. BECAUSE: L1\\nL2"),
        ("QCM-ELA", None, "S L1\\nL2 The answer is B."),
        ("QCML-A", ["Question: Which one?", "Context: Look.", "Options: (A) box (B) red chair", "BECAUSE: L1\\nL2"],
         "The answer is B."),
        ("QCLEM-A", ["Question: Which one?", "Context: Look.", "BECAUSE: L1\\nL2 S", "Options: (A) box (B) red chair"],
         "The answer is B."),
    ],
)  # fmt: skip
def test_prompt_formats(prompt_format: str, lines: list[str] | None, answer: str) -> None:
    assert prompt_format in PROMPT_FORMATS
    if lines is not None:
        assert question(PROBLEM, prompt_format).split("\n") == lines
    assert solution(PROBLEM, prompt_format) == answer


def test_captions_and_empty_contexts() -> None:
    assert "Context: Look. A room." in question(PROBLEM, captions=True)
    assert "Context: N/A" in question({**PROBLEM, "hint": ""})
    assert solution({**PROBLEM, "lecture": "", "solution": ""}) == "The answer is B. BECAUSE:"


def test_a_format_by_name() -> None:
    chosen = load_format("scienceqa:qcm-a,captions").parse({**PROBLEM, "id": "7"}, "x")
    assert (chosen.answer, chosen.id) == ("The answer is B.", "7")
    assert "A room." in chosen.turns[0].text
    with pytest.raises(UsageError, match="QCM-AX"):
        load_format("scienceqa:QCM-AX")
    with pytest.raises(UsageError, match="no options"):
        load_format("llava:other")


def test_a_split_of_unknown_problems(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "problems.json", tmp_path)
    (tmp_path / "pid_splits.json").write_text('{"train": ["11", "99"]}', encoding="utf-8")
    with pytest.raises(DataError, match="99"):
        load_samples(tmp_path)


def test_rows_of_the_mixture_are_judged_one_by_one(tmp_path: Path) -> None:
    good = {"instruction": "Instruction: Hi\nResponse:", "answer": "Ho", "image": None, "image_source": None}
    lines = [json.dumps(good), "7", json.dumps({**good, "answer": 3}), json.dumps({**good, "options": float("nan")})]
    path = tmp_path / "all_data.json"
    path.write_text('{"all": [\n' + ",\n".join(lines) + "\n]}", encoding="utf-8")
    prepare([path], tmp_path / "out", max_bad_fraction=0.75)
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in listed] == [
        (3, "not_an_object"),
        (4, "no_answer"),
        (5, "bad_number"),
    ]
    whole = path.read_text()
    for broken in (whole[:-1], whole + "x", '{"all": [' + "[" * 100_000 + "]" * 100_000 + "]}"):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(DataError, match="Broken JSON"):
            prepare([path], tmp_path / "none", format="lavin")


def test_a_table_of_scienceqa(tmp_path: Path) -> None:
    shown = {"bytes": (GOLDEN / "images" / "train" / "12" / "image.png").read_bytes(), "path": None}
    for name, image in (("train-00000-of-00001", shown), ("validation-00000-of-00001-0a1b", None), ("test", None)):
        row = {key: value for key, value in PROBLEM.items() if key != "caption"} | {"image": image, "question": name}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
    found = prepare([tmp_path], tmp_path / "out")
    assert (found["splits"], found["media"]) == ({"train": 1, "test": 1, "val": 1}, 1)
    sample = load_samples(tmp_path / "out", split="train")[0]
    assert sample.answer == "The answer is B. BECAUSE: L1\\nL2 S"
    assert sample.media == (Media("image", shown["bytes"]),)


def test_the_mixture_of_dialogues(tmp_path: Path) -> None:
    picture = tmp_path / "images" / "train2014" / "COCO_train2014_0001.jpg"
    other = tmp_path / "images" / "train" / "5" / "image.png"
    for path in (picture, other):
        path.parent.mkdir(parents=True)
        shutil.copy(GOLDEN / "images" / "train" / "12" / "image.png", path)
    rows = [
        {"instruction": "Instruction: Add 1 and 2.\nResponse:", "answer": "3", "image": None, "image_source": None,
         "options": None, "qid": "alpaca_0"},
        {"instruction": "Instruction: What is it?\nResponse:", "answer": "A cat.", "image": "0001.jpg",
         "image_source": "mscoco", "options": None, "qid": "gpt4_0"},
        {"instruction": "Question: Which?\nResponse:", "answer": "The answer is A.", "image": "image.png",
         "image_source": "sqa", "options": ["A"], "qid": "5"},
    ]  # fmt: skip
    (tmp_path / "all_data.json").write_text(json.dumps({"all": rows}), encoding="utf-8")
    table = load_samples(tmp_path / "all_data.json")
    assert [table[index].id for index in range(3)] == ["alpaca_0", "gpt4_0", "5"]
    assert [table[index].turns[0].text for index in range(3)] == ["Add 1 and 2.", "What is it?", "Question: Which?"]
    assert [[str(item.uri) for item in table[index].media] for index in range(3)] == [[], [str(picture)], [str(other)]]
