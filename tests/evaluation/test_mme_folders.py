"""MME read as it is released."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmtune.core.errors import DataError
from mmtune.evaluation.benchmarks.base import Options, Place
from mmtune.evaluation.run import evaluate, make_task


def release(folder: Path) -> Path:
    """A category with folders for pictures and texts, and one where both lie together."""
    for category, pictures, texts, end in (("color", "images", "questions_answers_YN", "jpg"), ("OCR", "", "", "png")):
        for name in (pictures, texts):
            (folder / category / name).mkdir(parents=True, exist_ok=True)
        for stem in ("0001", "0002"):
            Image.new("RGB", (8, 8), "red").save(folder / category / pictures / f"{stem}.{end}")
            asked = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
            (folder / category / texts / f"{stem}.txt").write_text(asked)
    return folder


def test_rows_pictures_and_points(tmp_path: Path) -> None:
    folder = release(tmp_path / "MME")
    table = make_task("mme", Options()).read(Place(folder))
    assert [sample.id for sample in table.samples][:3] == ["OCR/0001/1", "OCR/0001/2", "OCR/0002/1"]
    assert [Path(str(sample.media[0].uri)).name for sample in table.samples][3:5] == ["0002.png", "0001.jpg"]
    right = {sample.id: "yes" if sample.id.endswith("1") else "no" for sample in table.samples}
    right["color/0002/2"] = "yes"
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({"id": key, "prediction": value}) + "\n" for key, value in right.items()))
    found = evaluate(None, None, benchmark="mme", data=folder, predictions=answers)
    assert (found["n"], found["scores"]["OCR"], found["scores"]["color"]) == (8, 200.0, 75.0 + 50.0)


def test_a_missing_picture_fails_its_rows_alone_and_a_bad_line_is_named(tmp_path: Path) -> None:
    folder = release(tmp_path / "MME")
    (folder / "OCR" / "0001.png").unlink()
    assert len(make_task("mme", Options()).read(Place(folder)).samples) == 8
    (folder / "OCR" / "0001.txt").write_text("Is it red?\tYes\nIs it blue? No\n")
    with pytest.raises(DataError, match="no question and its answer") as caught:
        make_task("mme", Options()).read(Place(folder))
    assert str(caught.value.where).endswith("0001.txt:2")
