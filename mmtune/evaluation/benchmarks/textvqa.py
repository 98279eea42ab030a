"""TextVQA: questions about writing in pictures.

Source:
    Singh et al. 2019 (arXiv 1904.08920); scored as the m4c evaluator in LLaVA's ``eval_textvqa`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.annotated import annotated_items, golds_of, has_annotators
from mmtune.evaluation.benchmarks.base import Record, Scores
from mmtune.evaluation.benchmarks.public import PublicBenchmark, column
from mmtune.evaluation.prompts import question, short_answer_prompt
from mmtune.evaluation.reading.pictures import Pictures
from mmtune.evaluation.reading.tables import Row
from mmtune.evaluation.scorers.vqa import normalized_accuracy
from mmtune.evaluation.scorers.vqa_text import m4c
from mmtune.evaluation.statistics import mean_interval

_BY_QUESTION = "image_and_question"


class TextVQA(PublicBenchmark):
    """Mean accuracy against ten annotators in percent, both sides always normalised."""

    name: ClassVar[str] = "textvqa"
    scorer: ClassVar[str] = "LLaVA eval_textvqa, m4c evaluator (%)"
    primary: ClassVar[str | None] = "accuracy"
    file_names: ClassVar[tuple[str, ...]] = ("TextVQA*val*.json", "TextVQA*.tsv", "*textvqa*.tsv", "*.parquet")
    question_names: ClassVar[tuple[str, ...]] = ("llava_textvqa*.jsonl",)

    def tsv_row(self, row: Row, pictures: list[Any]) -> Sample:
        return _row(str(column(row, "index")), row, pictures, row.get("answer"))

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        return [
            _row(str(column(row, "question_id")), row, pictures.cell(row.get("image")), row.get("answers"))
            for row in rows
        ]

    def json_rows(self, value: Any, path: Path, pictures: Pictures) -> tuple[list[Sample], list[Path]]:
        if not isinstance(value, Mapping) or "data" not in value:
            raise self._unknown("a JSON file")
        found = []
        for row in value["data"]:
            file = f"{column(row, 'image_id')}.jpg"
            shown = [pictures.file(file, f"train_images/{file}")]
            found.append(_row(str(column(row, "question_id")), row, shown, row.get("answers")))
        return found, []

    def names_of(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        """LLaVA's answers name the picture; the question is the first line of their prompt."""
        prompt = row.get("prompt") or (row.get("text") if "category" in row else None)
        if not prompt or "question_id" not in row:
            return {}
        return {_BY_QUESTION: _picture_and_question(row["question_id"], str(prompt).split("\n")[0])}

    def has_gold(self, sample: Sample) -> bool:
        return has_annotators(sample)

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        def accuracy(text: str, golds: Sequence[str]) -> float:
            return normalized_accuracy(text, golds, m4c)

        items = annotated_items(samples, records, m4c, accuracy)
        values = [item["score"] for item in items]
        mean = 100 * (sum(values) / len(values))
        printed = ["predictions", f"Samples: {len(values)}", f"Accuracy: {mean:.2f}%"]  # what the reference prints
        clusters = [sample.extra["cluster"] for sample in samples]
        confidence = {"accuracy": mean_interval(values, clusters, 100)}
        return Scores({"accuracy": mean, "stdout": printed}, items, confidence)


def _row(id: str, row: Row, pictures: list[Any], answers: Any) -> Sample:
    text, picture = str(column(row, "question")), str(row.get("image_id") or id)
    names = {"question_id": id, "index": id, _BY_QUESTION: _picture_and_question(picture, text)}
    prompt = short_answer_prompt(text)
    return question(id, prompt, pictures, answer=golds_of(answers), names=names, cluster=picture)


def _picture_and_question(picture: Any, text: str) -> str:
    return f"{picture}\n{text.lower().strip()}"
