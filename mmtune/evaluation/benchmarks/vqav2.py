"""VQAv2: questions about COCO pictures with ten annotators each.

Source:
    Goyal et al. 2017 (arXiv 1612.00837); scored as the official ``vqaEval`` scores the raw answers.
    ``after_llava_convert`` is the score of answers that LLaVA's converter normalised first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.annotated import annotated_items, golds_of, has_annotators, rounded_tables
from mmtune.evaluation.benchmarks.base import Record, Scores, said
from mmtune.evaluation.benchmarks.public import PublicBenchmark, beside, column
from mmtune.evaluation.prompts import question, short_answer_prompt
from mmtune.evaluation.reading.pictures import Pictures
from mmtune.evaluation.reading.tables import Row, read_json
from mmtune.evaluation.scorers.vqa import official_accuracy
from mmtune.evaluation.scorers.vqa_text import m4c, official

TABLES = {"perQuestionType": "question_type", "perAnswerType": "answer_type"}


class VQAv2(PublicBenchmark):
    """The official accuracy in percent, overall, by question type and by answer type."""

    name: ClassVar[str] = "vqav2"
    scorer: ClassVar[str] = "official vqaEval of raw answers (%)"
    primary: ClassVar[str | None] = "overall"
    file_names: ClassVar[tuple[str, ...]] = ("v2_*annotations.json", "*annotations*.json", "*.parquet")
    question_names: ClassVar[tuple[str, ...]] = ("llava_vqav2*.jsonl",)

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        return [_row(row, row, pictures.cell(row.get("image"))) for row in rows]

    def json_rows(self, value: Any, path: Path, pictures: Pictures) -> tuple[list[Sample], list[Path]]:
        if not isinstance(value, Mapping) or not {"questions", "annotations"} & set(value):
            raise self._unknown("a JSON file")
        wanted = ("v2_*questions.json", "*questions*.json") if "annotations" in value else self.file_names[:2]
        other = beside(path, *wanted)
        both = {**read_json(other), **value}
        subset = str(both.get("data_subtype", "val2014"))
        questions = {str(row["question_id"]): row for row in both["questions"]}
        found = []
        for row in both["annotations"]:
            asked = questions.get(str(column(row, "question_id")))
            if asked is None:
                continue
            file = f"COCO_{subset}_{int(column(row, 'image_id')):012d}.jpg"
            found.append(_row(row, asked, [pictures.file(file, f"{subset}/{file}", f"{row['image_id']}.jpg")]))
        return found, [other]

    def has_gold(self, sample: Sample) -> bool:
        return has_annotators(sample)

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        items = annotated_items(samples, records, official, official_accuracy)
        scores, confidence = rounded_tables(samples, [item["score"] for item in items], TABLES)
        converted = [{**record, "prediction": m4c(said(record))} for record in records]
        again = annotated_items(samples, converted, official, official_accuracy)
        found, intervals = rounded_tables(samples, [item["score"] for item in again], TABLES)
        scores["after_llava_convert"] = found
        confidence |= {f"after_llava_convert.{name}": interval for name, interval in intervals.items()}
        return Scores(scores, items, confidence)


def _row(row: Row, asked: Row, pictures: list[Any]) -> Sample:
    name = str(column(row, "question_id"))
    return question(
        name,
        short_answer_prompt(str(column(asked, "question"))),
        pictures,
        answer=golds_of(row.get("answers")),
        question_type=row.get("question_type"),
        answer_type=row.get("answer_type"),
        names={"question_id": name},
        cluster=str(row.get("image_id") or name),
    )
