"""VizWiz: questions that blind people asked about pictures they took.

Source:
    Gurari et al. 2018 (arXiv 1802.08218); scored by the official VQA evaluation, every annotator counted by place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.annotated import annotated_items, golds_of, has_annotators, rounded_tables
from mmtune.evaluation.benchmarks.base import Record, Scores
from mmtune.evaluation.benchmarks.public import PublicBenchmark, column
from mmtune.evaluation.prompts import SHORT_ANSWER, question
from mmtune.evaluation.reading.pictures import Pictures
from mmtune.evaluation.reading.tables import Row
from mmtune.evaluation.scorers.vqa import official_accuracy
from mmtune.evaluation.scorers.vqa_text import official

_UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


class VizWiz(PublicBenchmark):
    """The VQA accuracy in percent, overall and by answer type."""

    name: ClassVar[str] = "vizwiz"
    scorer: ClassVar[str] = "official vqaEval on VizWiz (%)"
    primary: ClassVar[str | None] = "overall"
    file_names: ClassVar[tuple[str, ...]] = ("val.json", "VizWiz*.tsv", "*vizwiz*.tsv", "*.parquet")
    question_names: ClassVar[tuple[str, ...]] = ("llava_vizwiz*.jsonl",)

    def tsv_row(self, row: Row, pictures: list[Any]) -> Sample:
        index = str(column(row, "index"))
        return self._row(index, row, pictures, row.get("answers") or row.get("answer"), {"index": index})

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        found = []
        for row in rows:
            name = str(column(row, "question_id"))
            names = {"question_id": name, "image": Path(name).stem}
            plain = {**row, "answer_type": row.get("answer_type") or row.get("category")}
            found.append(self._row(name, plain, pictures.cell(row.get("image")), row.get("answers"), names))
        return found

    def json_rows(self, value: Any, path: Path, pictures: Pictures) -> tuple[list[Sample], list[Path]]:
        if not isinstance(value, list):
            raise self._unknown("a JSON file")
        found = []
        for at, row in enumerate(value):
            file = str(column(row, "image"))
            names = {"image": Path(file).stem, "index": str(at), "question_id": str(at)}
            shown = [pictures.file(file, f"val/{file}")]
            found.append(self._row(file, row, shown, row.get("answers"), names))
        return found, []

    def _row(self, id: str, row: Row, pictures: list[Any], answers: Any, names: Mapping[str, str]) -> Sample:
        text = str(column(row, "question"))
        prompt = text if self.options.prompt == "vlmevalkit" else f"{text}\n{_UNANSWERABLE}\n{SHORT_ANSWER}"
        kind = str(row.get("answer_type") or "unknown")
        return question(
            id, prompt, pictures, answer=golds_of(answers), answer_type=kind, names=dict(names), cluster=id, type="x"
        )

    def has_gold(self, sample: Sample) -> bool:
        return has_annotators(sample)

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        items = annotated_items(samples, records, official, official_accuracy)
        values = [item["score"] for item in items]
        # The VQA code wants a type of question, which VizWiz does not have: all are of type "x".
        tables = {"perQuestionType": "type", "perAnswerType": "answer_type"}
        scores, confidence = rounded_tables(samples, values, tables)
        return Scores(scores, items, confidence)
