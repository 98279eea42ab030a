"""Tables as VLMEvalKit has them: what pandas reads as empty, and questions of the table's own."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from mmtune.evaluation.benchmarks.base import Options, Place, Table
from mmtune.evaluation.run import make_task


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def read(path: Path, benchmark: str, rows: list[dict[str, Any]]) -> Table:
    lines = ["\t".join(rows[0]), *("\t".join(str(cell) for cell in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return make_task(benchmark, Options(pandas_na=True)).read(Place(path))


def test_mmmu_asks_openly_where_the_first_option_is_empty(tmp_path: Path) -> None:
    row = {"index": 1, "question": "How many <image 1>?", "A": "None", "B": "two", "C": "three", "answer": "C"}
    row |= {"category": "Art", "l2-category": "Art & Design", "split": "validation", "image": picture()}
    (sample,) = read(tmp_path / "MMMU_DEV_VAL.tsv", "mmmu", [row]).samples
    assert sample.extra["options"] == {"A": "C", "B": "Other Answers", "C": "three"}
    assert sample.extra["answer"] == "C"
    assert "B. two\nC. three\n" in sample.turns[0].text, "what is left of the options is shown"


def test_captions_are_asked_for_as_the_table_says(tmp_path: Path) -> None:
    row = {"index": 1, "answer": "['a dog']", "image": picture()}
    (plain,) = read(tmp_path / "COCO_VAL.tsv", "coco_caption", [row]).samples
    assert plain.turns[0].text.startswith("Please describe this image in general.")
    (asked,) = read(tmp_path / "COCO_VAL.tsv", "coco_caption", [row | {"question": "What do you see?"}]).samples
    assert asked.turns[0].text == "What do you see?"
