"""HallusionBench: yes/no questions in sets that share figures and questions.

Source:
    Guan et al. 2023 (arXiv 2310.14566); scored as VLMEvalKit does without a judge. The official scores need GPT-4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Record, Scores
from mmtune.evaluation.benchmarks.public import PublicBenchmark, column
from mmtune.evaluation.benchmarks.yes_no import has_yes_or_no, yes_no_items, yes_no_unknown
from mmtune.evaluation.prompts import question
from mmtune.evaluation.reading.pictures import Pictures, cluster_of
from mmtune.evaluation.reading.tables import Row
from mmtune.evaluation.statistics import Array, cluster_interval, mean_interval

_SET, _FIGURE, _QUESTION = 3, 4, 5  # places in the index, cut at underscores


class HallusionBench(PublicBenchmark):
    """``aAcc`` by question, ``fAcc`` by figure and ``qAcc`` by question over its figures, in percent.

    ``mean`` is the average of the three over everything, which leaderboards show.
    """

    name: ClassVar[str] = "hallusionbench"
    scorer: ClassVar[str] = "VLMEvalKit aAcc/fAcc/qAcc (%)"
    primary: ClassVar[str | None] = "aAcc"
    file_names: ClassVar[tuple[str, ...]] = (
        "HallusionBench*.tsv",
        "*hallusion*.tsv",
        "HallusionBench*.json",
        "*.parquet",
    )

    def tsv_row(self, row: Row, pictures: list[Any]) -> Sample:
        index = str(column(row, "index"))
        parts = index.split("_")
        if len(parts) <= _QUESTION:
            raise DataError(
                f"The index '{index}' has no parts for set, figure and question.", fix="give VLMEvalKit's table"
            )
        return _row(index, row, pictures, (parts[_SET], parts[_FIGURE], parts[_QUESTION]), row.get("answer"))

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        if "index" in rows[0]:
            return [self.tsv_row(row, shown) for row in rows if (shown := pictures.cell(row.get("image")))]
        return [_official_row(row, shown) for row in rows if (shown := pictures.cell(row.get("image")))]

    def json_rows(self, value: Any, path: Path, pictures: Pictures) -> tuple[list[Sample], list[Path]]:
        if not isinstance(value, list):
            raise self._unknown("a JSON file")
        kept = [row for row in value if str(row.get("visual_input", "1")) != "0" and row.get("filename")]
        return [_official_row(row, [pictures.file(str(row["filename"]).removeprefix("./"))]) for row in kept], []

    def has_gold(self, sample: Sample) -> bool:
        return has_yes_or_no(sample)

    def main_score(self, scores: Mapping[str, Any]) -> tuple[str, float]:
        return "Overall.aAcc", float(scores["Overall"]["aAcc"])

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        items = yes_no_items(samples, records)
        hits = [item["score"] for item in items]
        groups = {"Overall": list(range(len(samples)))}
        for key in ("category", "l2"):
            for name in sorted({sample.extra[key] for sample in samples if sample.extra[key]}):
                groups[name] = [at for at, sample in enumerate(samples) if sample.extra[key] == name]
        scores: dict[str, Any] = {}
        confidence: dict[str, Any] = {}
        for name, rows in groups.items():
            scores[name] = {}
            for measure, shares in _measures([samples[at] for at in rows], [hits[at] for at in rows]).items():
                values, clusters = shares
                scores[name][measure] = 100 * sum(values) / len(values)
                confidence[f"{name}.{measure}"] = mean_interval(values, clusters, 100)
        scores["mean"] = sum(scores["Overall"].values()) / len(scores["Overall"])
        confidence["mean"] = _mean_interval(samples, hits)
        return Scores(scores, items, confidence, yes_no_unknown(items))


def _official_row(row: Row, pictures: list[Any]) -> Sample:
    """A row of the official file, under the index that VLMEvalKit's table gives it."""
    keys = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")
    parts = [str(column(row, key)) for key in keys]
    told = {"0": "No", "1": "Yes"}.get(str(row.get("gt_answer")))
    plain = {**row, "l2-category": row.get("subcategory")}
    return _row("_".join(parts), plain, pictures, (parts[3], parts[4], parts[5]), told)


def _row(index: str, row: Row, pictures: list[Any], places: tuple[str, str, str], answer: Any) -> Sample:
    l2 = row.get("l2-category")
    return question(
        index,
        str(column(row, "question")),
        pictures,
        answer=answer,
        category=row.get("category"),
        l2=l2,
        figure=f"{l2}_{places[0]}_{places[1]}",
        question=f"{l2}_{places[0]}_{places[2]}",
        set=f"{l2}_{places[0]}",
        names={"index": index},
        cluster=cluster_of(pictures, index),
    )


def _mean_interval(samples: Sequence[Sample], hits: Sequence[int]) -> dict[str, Any]:
    """The interval of the mean of the three measures, over sets, in which all that they count lies."""
    sets = sorted({str(sample.extra["set"]) for sample in samples})
    statistics = np.zeros((len(sets), 6))  # of each measure the sum and the number of its verdicts
    for place, name in enumerate(sets):
        rows = [at for at, sample in enumerate(samples) if sample.extra["set"] == name]
        shares = _measures([samples[at] for at in rows], [hits[at] for at in rows])
        statistics[place] = [part for values, _ in shares.values() for part in (sum(values), len(values))]

    def mean(sums: Array) -> Array:
        found: Array = (sums[:, ::2] / sums[:, 1::2]).mean(axis=1)
        return found

    return cluster_interval(statistics, sets, mean, 100)


def _measures(samples: Sequence[Sample], hits: Sequence[int]) -> dict[str, tuple[list[int], list[str]]]:
    """For each measure the verdicts it is the mean of, and the cluster of each: the picture, or the whole set."""
    found = {"aAcc": (list(hits), [str(sample.extra["cluster"]) for sample in samples])}
    for measure, key in (("fAcc", "figure"), ("qAcc", "question")):
        groups: dict[str, int] = {}
        sets: dict[str, str] = {}
        for sample, hit in zip(samples, hits, strict=True):
            name = sample.extra[key]
            groups[name] = groups.get(name, 1) and hit
            sets[name] = sample.extra["set"]
        found[measure] = (list(groups.values()), [sets[name] for name in groups])
    return found
