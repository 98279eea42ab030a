"""POPE: is an object in the picture?

Source:
    Li et al. 2023 (arXiv 2305.10355); scored by category, as POPE's ``evaluate.py`` and LLaVA's
    ``eval_pope`` do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Place, Record, Scores, Table, said
from mmtune.evaluation.benchmarks.public import PublicBenchmark, column
from mmtune.evaluation.benchmarks.yes_no import has_yes_or_no
from mmtune.evaluation.prompts import question
from mmtune.evaluation.reading.pictures import Pictures, cluster_of
from mmtune.evaluation.reading.tables import Row
from mmtune.evaluation.scorers.yes_no import confusion, pope_measures, pope_yes_no
from mmtune.evaluation.statistics import Array, cluster_interval, mean_interval

_PARTS = "coco_pope_*.json"
_COUNTS = ("TP", "FP", "TN", "FN")
_MEANS = ("f1", "accuracy")
_BY_QUESTION = "category_and_image_and_question"


class POPE(PublicBenchmark):
    """F1, accuracy, precision, recall and share of "yes" of each category, 0 to 1, and the means over categories."""

    name: ClassVar[str] = "pope"
    scorer: ClassVar[str] = "LLaVA eval_pope = official evaluate.py (0-1)"
    primary: ClassVar[str | None] = "f1"
    shared_names: ClassVar[frozenset[str]] = frozenset({"index"})  # VLMEvalKit's rows serve all categories
    file_names: ClassVar[tuple[str, ...]] = ("POPE*.tsv", "*pope*.tsv", "*.parquet")
    question_names: ClassVar[tuple[str, ...]] = ("llava_pope_test.jsonl",)

    def read(self, place: Place) -> Table:
        """The rows; a folder without a table is read from its official files, one a category.

        LLaVA's questions beside the folder of those files come first, for answers to them have their numbers.
        """
        tables = [name for name in self.file_names[:2] for name in place.path.glob(name)]
        folders = (place.path, place.path / "coco")
        parts = next((found for folder in folders if (found := sorted(folder.glob(_PARTS)))), [])
        questions = place.path / self.question_names[0]
        if not parts or tables:
            return super().read(place)
        if questions.is_file() and parts[0].parent != place.path:
            return super().read(replace(place, path=questions))
        read = [super(POPE, self).read(Place(part, place.media_root, place.look)) for part in parts]
        return Table([sample for table in read for sample in table.samples], parts)

    def official(self, questions: Path) -> Path:
        """LLaVA's questions go with the official files."""
        folder = questions.parent / "coco"
        return folder if folder.is_dir() else questions.parent

    def tsv_row(self, row: Row, pictures: list[Any]) -> Sample:
        index = str(column(row, "index", "id"))
        categories = str(row.get("category") or "all").split(",")
        return _row(index, row, pictures, categories, row.get("answer"), {"index": index})

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        found = []
        for row in rows:
            name = str(column(row, "id", "question_id"))
            names = {"id": name} | ({"index": str(row["src_index"])} if row.get("src_index") is not None else {})
            categories = [str(row.get("category") or "all")]
            found.append(_row(name, row, pictures.cell(row.get("image")), categories, row.get("answer"), names))
        return found

    def json_rows(self, value: Any, path: Path, pictures: Pictures) -> tuple[list[Sample], list[Path]]:
        if not isinstance(value, list):
            raise self._unknown("a JSON file")
        category, found = path.stem.rpartition("_")[2], []
        for row in value:
            name, plain = str(column(row, "question_id")), {**row, "question": row.get("text")}
            shown = [pictures.file(str(column(row, "image")), f"val2014/{row['image']}")]
            # Numbers begin anew in each category's file; VLMEvalKit's table and LLaVA's questions have their own.
            names = {"question_id": name, _BY_QUESTION: _picture_and_question({**row, "category": category})}
            found.append(_row(f"{category}-{name}", plain, shown, [category], row.get("label"), names))
        return found, []

    def names_of(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        """LLaVA's questions have numbers of their own; category, picture and the first line tell which row is meant."""
        return {_BY_QUESTION: _picture_and_question(row)} if {"category", "image", "text"} <= set(row) else {}

    def has_gold(self, sample: Sample) -> bool:
        return has_yes_or_no(sample)

    def main_score(self, scores: Mapping[str, Any]) -> tuple[str, float]:
        return "mean.f1", float(scores["mean"]["f1"])

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        items = [_item(sample, record) for sample, record in zip(samples, records, strict=True)]
        scores: dict[str, Any] = {}
        confidence: dict[str, Any] = {}
        for category in sorted({name for sample in samples for name in sample.extra["categories"]}):
            rows = [at for at, sample in enumerate(samples) if category in sample.extra["categories"]]
            answers, labels = [items[at]["extracted"] for at in rows], [items[at]["gold"] for at in rows]
            counts = confusion(answers, labels)
            scores[category] = counts | pope_measures(counts)
            clusters = [samples[at].extra["cluster"] for at in rows]
            confidence |= _intervals(category, answers, labels, clusters)
        categories = list(scores)
        scores["mean"] = {
            measure: sum(scores[name][measure] for name in categories) / len(categories) for measure in _MEANS
        }
        of_one = {f"mean.{measure}": confidence[f"{categories[0]}.{measure}"] for measure in _MEANS}
        confidence |= of_one if len(categories) == 1 else _mean_intervals(samples, items, categories)
        return Scores(scores, items, confidence)


def _row(
    id: str, row: Row, pictures: list[Any], categories: Sequence[str], answer: Any, names: Mapping[str, str]
) -> Sample:
    return question(
        id,
        str(column(row, "question")),
        pictures,
        answer=str(answer).lower() if answer is not None else None,
        categories=[name.strip() for name in categories],
        names=dict(names),
        cluster=cluster_of(pictures, id),
    )


def _picture_and_question(row: Mapping[str, Any]) -> str:
    return "\n".join((str(row["category"]), Path(str(row["image"])).stem, str(row["text"]).split("\n")[0].strip()))


def _item(sample: Sample, record: Record) -> dict[str, Any]:
    gold = "no" if sample.extra["answer"] == "no" else "yes"
    item = {"id": sample.id, "prediction": said(record), "extracted": pope_yes_no(said(record)), "how": "words"}
    if "error" in record:  # silence would count as "yes"
        item |= {"error": record["error"], "extracted": "yes" if gold == "no" else "no", "how": "failed"}
    return item | {"gold": gold, "score": int(item["extracted"] == gold)}


def _intervals(category: str, answers: Sequence[str], labels: Sequence[str], clusters: Sequence[str]) -> dict[str, Any]:
    """Intervals of a category's measures, over pictures."""
    rows = [confusion([said_it], [label]) for said_it, label in zip(answers, labels, strict=True)]
    statistics = np.array([[counts[name] for name in _COUNTS] for counts in rows], dtype=float)
    right = [float(said_it == label) for said_it, label in zip(answers, labels, strict=True)]
    found = {f"{category}.accuracy": mean_interval(right, clusters)}
    for measure in ("precision", "recall", "f1", "yes_ratio"):

        def measured(sums: Array, measure: str = measure) -> Array:
            return np.array([pope_measures(dict(zip(_COUNTS, row, strict=True)))[measure] for row in sums])

        found[f"{category}.{measure}"] = cluster_interval(statistics, clusters, measured)
    return found


def _mean_intervals(
    samples: Sequence[Sample], items: Sequence[Mapping[str, Any]], categories: Sequence[str]
) -> dict[str, Any]:
    """Intervals of the means over categories, over pictures, which the categories may share."""
    statistics = np.zeros((len(samples), len(categories), len(_COUNTS)))
    for row, (sample, item) in enumerate(zip(samples, items, strict=True)):
        counts = confusion([item["extracted"]], [item["gold"]])
        for name in set(sample.extra["categories"]):
            statistics[row, categories.index(name)] = [counts[key] for key in _COUNTS]
    clusters = [sample.extra["cluster"] for sample in samples]
    found = {}
    for measure in _MEANS:

        def mean(sums: Array, measure: str = measure) -> Array:
            parts = sums.reshape(-1, len(_COUNTS))  # [R * C, 4]
            values = [pope_measures(dict(zip(_COUNTS, part, strict=True)))[measure] for part in parts]
            return np.array(values).reshape(len(sums), -1).mean(axis=1)

        found[f"mean.{measure}"] = cluster_interval(statistics.reshape(len(samples), -1), clusters, mean)
    return found
