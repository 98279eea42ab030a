"""ScienceQA: school questions, with pictures or without.

Source:
    Lu et al. 2022 (arXiv 2209.09513). VLMEvalKit's table (questions with pictures) is scored as VLMEvalKit does; the
    official files as LLaVA's ``eval_science_qa`` does, with the official table of categories.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Record, Scores, said
from mmtune.evaluation.benchmarks.multiple_choice import MultipleChoice
from mmtune.evaluation.benchmarks.public import beside, column
from mmtune.evaluation.prompts import choice_prompt, question
from mmtune.evaluation.reading.pictures import Pictures, cluster_of
from mmtune.evaluation.reading.tables import Row, read_json
from mmtune.evaluation.scorers.scienceqa import FAILED, category_groups, choice_index, parse_letter
from mmtune.evaluation.statistics import mean_interval, mean_table

_FACTS = ("subject", "grade", "topic", "hint")


class ScienceQA(MultipleChoice):
    """ScienceQA from VLMEvalKit's table, ``problems.json`` with ``pid_splits.json``, LLaVA's questions, or parquet."""

    name: ClassVar[str] = "scienceqa"
    file_names: ClassVar[tuple[str, ...]] = (
        "ScienceQA_TEST*.tsv",
        "ScienceQA*.tsv",
        "*scienceqa*.tsv",
        "llava_test_*.json",
        "problems.json",
        "*.parquet",
    )

    def json_rows(self, value: Any, path: Path, pictures: Pictures) -> tuple[list[Sample], list[Path]]:
        if isinstance(value, list):  # LLaVA's questions: id, conversations, image
            file = beside(path, "problems.json")
            problems = read_json(file)
            rows = [(str(row["id"]), problems[str(row["id"])], row.get("image")) for row in value]
            return [self._problem(pid, row, _shown(pictures, image)) for pid, row, image in rows], [file]
        splits = beside(path, "pid_splits.json")
        found = []
        for pid in read_json(splits)["test"]:
            row, shown = value[str(pid)], []
            if row.get("image"):
                file_name = f"{row.get('split', 'test')}/{pid}/{row['image']}"
                shown = [pictures.file(file_name, f"images/{file_name}", f"{pid}/{row['image']}", f"{pid}.png")]
            found.append(self._problem(str(pid), row, shown))
        return found, [splits]

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        if "choices" not in rows[0]:
            return super().parquet_rows(rows, pictures)
        names = [str(row.get("index") or row.get("id") or at) for at, row in enumerate(rows)]
        return [
            self._problem(name, row, pictures.cell(row.get("image"))) for name, row in zip(names, rows, strict=True)
        ]

    def _problem(self, pid: str, row: Row, shown: list[Any]) -> Sample:
        options = dict(zip(string.ascii_uppercase, map(str, column(row, "choices")), strict=False))
        prompt = choice_prompt(str(column(row, "question")), options, row.get("hint"), self.options.prompt)
        return question(
            pid,
            prompt,
            shown,
            answer=list(options)[int(column(row, "answer"))],
            options=options,
            problem={key: row.get(key) or "" for key in _FACTS} | {"image": bool(shown)},
            names={"question_id": pid},
            cluster=cluster_of(shown, pid),
        )

    def main_score(self, scores: Mapping[str, Any]) -> tuple[str, float]:
        return ("acc", float(scores["acc"])) if "acc" in scores else super().main_score(scores)

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        if "problem" not in samples[0].extra:
            return super().score(samples, records)
        items = [_llava(sample, record) for sample, record in zip(samples, records, strict=True)]
        hits = [item["hit"] for item in items]
        clusters = [sample.extra["cluster"] for sample in samples]
        groups = category_groups([sample.extra["problem"] for sample in samples])
        categories, intervals = mean_table(groups, hits, clusters, 100)
        pictured = [at for at, sample in enumerate(samples) if sample.extra["problem"]["image"]]
        scores = {
            "acc": 100 * sum(hits) / len(hits),
            "correct": sum(hits),
            "count": len(hits),
            "img_acc": 100 * sum(hits[at] for at in pictured) / len(pictured) if pictured else None,
            "categories": {key: None if value is None else round(value, 2) for key, value in categories.items()},
        }
        confidence = {"acc": mean_interval(hits, clusters, 100)}
        if pictured:
            confidence["img_acc"] = intervals["acc_has_image"]
        confidence |= {f"categories.{name}": interval for name, interval in intervals.items()}
        failed = sum(item["extracted"] == FAILED and "error" not in item for item in items)
        return Scores(scores, items, confidence, failed, scorer="LLaVA eval_science_qa, category table (%)")


def _llava(sample: Sample, record: Record) -> dict[str, Any]:
    """The verdict of LLaVA's evaluation, whose runner strips answers."""
    letter = FAILED if "error" in record else parse_letter(said(record).strip())
    options = sample.extra["options"]
    chosen = choice_index(letter, len(options))
    gold = str(sample.extra["answer"])
    item = {"id": sample.id, "prediction": said(record), "extracted": letter, "how": "llava", "gold": gold}
    hit = int(chosen >= 0 and list(options)[chosen] == gold)
    return item | {"hit": hit} | ({"error": record["error"]} if "error" in record else {})


def _shown(pictures: Pictures, image: Any) -> list[Any]:
    return [pictures.file(str(image))] if image else []
