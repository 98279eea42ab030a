"""SEED-Bench: questions of nine kinds about pictures, and of three about films.

Source:
    Li et al. 2023 (arXiv 2307.16125); VLMEvalKit's table is scored as VLMEvalKit does, the official file as LLaVA's
    ``convert_seed_for_submission`` does: right when the text is the letter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Record, Scores, said
from mmtune.evaluation.benchmarks.multiple_choice import MultipleChoice
from mmtune.evaluation.benchmarks.public import column, one_answer
from mmtune.evaluation.prompts import choice_prompt, question
from mmtune.evaluation.reading.pictures import Pictures, cluster_of
from mmtune.evaluation.reading.tables import Row
from mmtune.evaluation.statistics import mean_table

_LETTERS = "ABCD"
_TOTAL = "Total accuracy"


class SEEDBench(MultipleChoice):
    """SEED-Bench from VLMEvalKit's table (pictures alone), the official JSON, LLaVA's questions, or parquet."""

    name: ClassVar[str] = "seedbench"
    file_names: ClassVar[tuple[str, ...]] = ("SEEDBench_IMG*.tsv", "*seedbench*.tsv", "SEED-Bench.json", "*.parquet")
    question_names: ClassVar[tuple[str, ...]] = ("llava-seed-bench.jsonl",)
    answer_names: ClassVar[tuple[str, ...]] = ("SEED-Bench*.json",)  # it has the films too

    def json_rows(self, value: Any, path: Path, pictures: Pictures) -> tuple[list[Sample], list[Path]]:
        if not isinstance(value, Mapping) or "questions" not in value:
            raise self._unknown("a JSON file")
        types = {number: name for name, number in (value.get("question_type") or {}).items()}
        return [self._official_row(row, types, pictures) for row in value["questions"]], []

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        if "choice_a" not in rows[0]:
            return super().parquet_rows(rows, pictures)
        return [self._official_row(row, {}, pictures, pictures.cell(row.get("image"))) for row in rows]

    def _official_row(
        self, row: Row, types: Mapping[int, str], pictures: Pictures, shown: list[Any] | None = None
    ) -> Sample:
        name, file = str(column(row, "question_id")), str(row.get("data_id") or "")
        if shown is None:
            film = row.get("data_type") == "video"
            frame = f"SEED-Bench-video-image/{name}.png" if film else f"SEED-Bench-image/{file}"
            shown = [pictures.file(frame, file)]
        options = {letter: str(column(row, f"choice_{letter.lower()}")) for letter in _LETTERS}
        number = row.get("question_type_id")
        return question(
            name,
            choice_prompt(str(column(row, "question")), options, None, self.options.prompt),
            shown,
            answer=row.get("answer"),
            options=options,
            type=types.get(number, f"type {number}"),
            data_type=str(row.get("data_type") or "image"),
            names={"question_id": name},
            cluster=cluster_of(shown, name),
        )

    def main_score(self, scores: Mapping[str, Any]) -> tuple[str, float]:
        return (_TOTAL, float(scores[_TOTAL])) if _TOTAL in scores else super().main_score(scores)

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        if "type" not in samples[0].extra:
            return super().score(samples, records)
        items = [_equal(sample, record) for sample, record in zip(samples, records, strict=True)]
        groups: dict[str, list[int]] = {}
        for at, sample in enumerate(samples):
            groups.setdefault(sample.extra["type"], []).append(at)
        groups[_TOTAL] = list(range(len(samples)))
        for kind in sorted({sample.extra["data_type"] for sample in samples}):
            groups[f"{kind} accuracy"] = [at for at, row in enumerate(samples) if row.extra["data_type"] == kind]
        clusters = [sample.extra["cluster"] for sample in samples]
        scores, confidence = mean_table(groups, [item["hit"] for item in items], clusters, 100)
        strange = sum(item["extracted"] not in tuple(_LETTERS) and "error" not in item for item in items)
        return Scores(scores, items, confidence, strange, scorer="LLaVA convert_seed, equality with the letter (%)")


def _equal(sample: Sample, record: Record) -> dict[str, Any]:
    """The verdict of LLaVA's script: the stripped answer is the letter or it is wrong."""
    text, gold = said(record).strip(), one_answer(sample)
    item = {"id": sample.id, "prediction": said(record), "extracted": text, "how": "equality", "gold": gold}
    failed = "error" in record
    return item | {"hit": int(text == gold and not failed)} | ({"error": record["error"]} if failed else {})
