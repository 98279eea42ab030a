"""GQA: questions about scene graphs, each with one answer of a word or two.

Source:
    Hudson and Manning 2019 (arXiv 1902.09506); LLaVA's converter, then the equality of the official evaluation on
    balanced questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Place, Record, Scores, Table, said
from mmtune.evaluation.benchmarks.public import PublicBenchmark, beside, column, one_answer
from mmtune.evaluation.prompts import question, short_answer_prompt
from mmtune.evaluation.reading.pictures import Pictures
from mmtune.evaluation.reading.tables import Row, read_json
from mmtune.evaluation.statistics import mean_table

_QUESTIONS = ("testdev_balanced_questions.json", "*balanced_questions.json", "*questions*.json")


class GQA(PublicBenchmark):
    """Share of exact answers in percent, overall and by kind of question where the file with the kinds is there."""

    name: ClassVar[str] = "gqa"
    scorer: ClassVar[str] = "LLaVA convert_gqa, official equality (%)"
    primary: ClassVar[str | None] = "accuracy"
    file_names: ClassVar[tuple[str, ...]] = (*_QUESTIONS, "GQA*.tsv", "*gqa*.tsv", "*.parquet")
    question_names: ClassVar[tuple[str, ...]] = ("llava_gqa*.jsonl",)

    def read(self, place: Place) -> Table:
        """The rows; kinds of questions that a table lacks come from the official file, when that lies beside it."""
        table = super().read(place)
        if any(sample.extra["structural"] for sample in table.samples):
            return table
        try:
            questions = beside(Path(table.files[0]), *_QUESTIONS)
        except DataError:
            return table
        known = read_json(questions)
        samples = []
        for sample in table.samples:
            kind = (known.get(sample.id) or {}).get("types", {}).get("structural")
            samples.append(replace(sample, extra={**sample.extra, "structural": kind}))
        return replace(table, samples=samples, files=[*table.files, questions])

    def tsv_row(self, row: Row, pictures: list[Any]) -> Sample:
        name = str(column(row, "index"))
        return _row(name, row, pictures, str(row.get("image_id") or name))

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        return [
            _row(str(column(row, "id")), row, _shown(row, pictures), str(row.get("imageid") or row["id"]))
            for row in rows
            if row.get("isbalanced", True)
        ]

    def json_rows(self, value: Any, path: Path, pictures: Pictures) -> tuple[list[Sample], list[Path]]:
        if not isinstance(value, Mapping):
            raise self._unknown("a JSON file")
        found = []
        for name, row in value.items():
            if row.get("isBalanced", True):
                plain = {**row, "imageid": row.get("imageId")}
                found.append(_row(str(name), plain, _shown(plain, pictures), str(row.get("imageId") or name)))
        return found, []

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        items = [_item(sample, record) for sample, record in zip(samples, records, strict=True)]
        groups: dict[str, list[int]] = {"accuracy": list(range(len(samples)))}
        for at, sample in enumerate(samples):
            kind = sample.extra["structural"]
            if kind:
                groups.setdefault("open" if kind == "query" else "binary", []).append(at)
                groups.setdefault(f"structural:{kind}", []).append(at)
        clusters = [sample.extra["cluster"] for sample in samples]
        scores, confidence = mean_table(groups, [item["score"] for item in items], clusters, 100)
        return Scores(scores, items, confidence)


def _shown(row: Row, pictures: Pictures) -> list[Any]:
    if row.get("image") is not None:
        return pictures.cell(row["image"])
    name = str(column(row, "imageid"))
    return [pictures.file(f"{name}.jpg", f"images/{name}.jpg")]


def _row(id: str, row: Row, pictures: list[Any], picture: str) -> Sample:
    return question(
        id,
        short_answer_prompt(str(column(row, "question"))),
        pictures,
        answer=row.get("answer"),
        structural=(row.get("types") or {}).get("structural"),
        names={"question_id": id},
        cluster=picture,
    )


def _item(sample: Sample, record: Record) -> dict[str, Any]:
    given = said(record).strip().rstrip(".").lower()
    item = {"id": sample.id, "prediction": said(record), "extracted": given, "how": "equality"}
    item |= {"gold": one_answer(sample), "score": int(given == one_answer(sample) and "error" not in record)}
    return item | ({"error": record["error"]} if "error" in record else {})
