"""MME: two yes/no questions about each picture, in fourteen categories.

Source:
    Fu et al. 2023 (arXiv 2306.13394); scored as VLMEvalKit does without a judge. ``official`` holds the score of MME's
    own script, which looks at the first four characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Place, Record, Scores, Table, said
from mmtune.evaluation.benchmarks.public import PublicBenchmark, column
from mmtune.evaluation.benchmarks.yes_no import has_yes_or_no, yes_no_items, yes_no_unknown
from mmtune.evaluation.prompts import question
from mmtune.evaluation.reading.mme_folders import question_files, rows_of
from mmtune.evaluation.reading.pictures import Pictures
from mmtune.evaluation.reading.tables import Row
from mmtune.evaluation.scorers.yes_no import mme_yes_no
from mmtune.evaluation.statistics import Array, cluster_interval

PERCEPTION = (
    *("OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position", "posters", "scene"),
)
REASONING = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")
CATEGORIES = (*PERCEPTION, *REASONING)
_PAIR = 2  # questions about one picture that count for "both right"


class MME(PublicBenchmark):
    """MME points: a category's share of right answers plus its share of pictures with both right, times 100."""

    name: ClassVar[str] = "mme"
    scorer: ClassVar[str] = "VLMEvalKit Yes/No (points)"
    primary: ClassVar[str | None] = "total"
    file_names: ClassVar[tuple[str, ...]] = ("MME*.tsv", "*mme*.tsv", "*.parquet")
    question_names: ClassVar[tuple[str, ...]] = ("llava_mme.jsonl",)

    def read(self, place: Place) -> Table:
        files = question_files(place.path, CATEGORIES)
        if not files or any(list(place.path.glob(name)) for name in self.file_names):
            return super().read(place)
        pictures = Pictures(place.path, place.media_root, look=place.look)
        samples = []
        for file in files:
            for row, names in rows_of(file, place.path):
                picture = pictures.file(*names)
                shown = f"{row['category']}/{file.stem}"
                ids = {"question_id": f"{shown}{Path(str(picture)).suffix}" if isinstance(picture, str) else shown}
                samples.append(_row(f"{shown}/{row['number']}", row, [picture], shown, ids))
        return Table(samples, files)

    def tsv_row(self, row: Row, pictures: list[Any]) -> Sample:
        index, picture = str(column(row, "index")), str(column(row, "image_path", "index"))
        return _row(index, row, pictures, picture, {"index": index, "question_id": picture})

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        if "image_path" in rows[0]:
            return [self.tsv_row(row, pictures.cell(row.get("image"))) for row in rows]
        names = [str(column(row, "question_id")) for row in rows]
        return [
            _row(name, row, pictures.cell(row.get("image")), name, {"question_id": name})
            for name, row in zip(names, rows, strict=True)
        ]

    def has_gold(self, sample: Sample) -> bool:
        return has_yes_or_no(sample)

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        items = yes_no_items(samples, records)
        scores, confidence = _points(samples, [item["score"] for item in items])
        by_script = [
            int("error" not in record and mme_yes_no(said(record)) == str(sample.extra["answer"]).lower())
            for sample, record in zip(samples, records, strict=True)
        ]
        scores["official"], intervals = _points(samples, by_script)
        confidence |= {f"official.{name}": interval for name, interval in intervals.items()}
        missing = [name for name in CATEGORIES if name not in scores]
        top_level = {"incomplete": missing} if missing else {}
        return Scores(scores, items, confidence, yes_no_unknown(items), top_level)


def _row(id: str, row: Row, pictures: list[Any], picture: str, names: dict[str, str]) -> Sample:
    category = str(column(row, "category"))
    return question(
        id,
        str(column(row, "question")),
        pictures,
        answer=row.get("answer"),
        category=category,
        names=names,
        cluster=f"{category}/{picture}",
    )


def _points(samples: Sequence[Sample], hits: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Points by category and their sums, and the intervals over pictures."""
    pictures: dict[str, list[int]] = {}
    for at, sample in enumerate(samples):
        pictures.setdefault(sample.extra["cluster"], []).append(at)
    given = list(dict.fromkeys(sample.extra["category"] for sample in samples))
    present = [name for name in CATEGORIES if name in given] + [name for name in given if name not in CATEGORIES]
    # Four sums a category: right answers, answers, pictures with both right, pictures with two answers.
    statistics = np.zeros((len(pictures), 4 * len(present)))
    for place, rows in enumerate(pictures.values()):
        start = 4 * present.index(samples[rows[0]].extra["category"])
        pair = len(rows) >= _PAIR
        both = pair and all(hits[at] for at in rows[:_PAIR])
        statistics[place, start : start + 4] = sum(hits[at] for at in rows), len(rows), both, pair
    wanted = {
        "perception": [name for name in PERCEPTION if name in present],
        "reasoning": [name for name in REASONING if name in present],
        "total": [name for name in CATEGORIES if name in present],
        **{name: [name] for name in present},
    }
    scores, confidence = {}, {}
    for name, categories in wanted.items():
        columns = [present.index(category) for category in categories]

        def points(sums: Array, columns: list[int] = columns) -> Array:
            return _sum_of_points(sums, columns)

        scores[name] = float(points(statistics.sum(axis=0, keepdims=True))[0])
        confidence[name] = cluster_interval(statistics, list(pictures), points)
    return scores, confidence


def _sum_of_points(sums: Array, columns: Sequence[int]) -> Array:
    """Points of several categories together, from the sums of :func:`_points`, ``[R, 4 * K]`` to ``[R]``."""
    total = np.zeros(len(sums))
    for column_ in columns:
        right, answers, both, pairs = sums[:, 4 * column_ : 4 * column_ + 4].T
        total += 100 * right / np.maximum(answers, 1) + 100 * both / np.maximum(pairs, 1)
    return total
