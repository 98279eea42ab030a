"""COCO captions: one sentence about each picture, against five of people.

Source:
    Chen et al. 2015 (arXiv 1504.00325); BLEU, ROUGE-L and CIDEr as ``pycocoevalcap`` computes them. The tokenizer is
    the Java program that package brings where both are installed, else :mod:`mmtune.evaluation.scorers.ptb`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.annotated import golds_of
from mmtune.evaluation.benchmarks.base import Record, Scores, said
from mmtune.evaluation.benchmarks.public import PublicBenchmark, column
from mmtune.evaluation.prompts import CAPTION, question
from mmtune.evaluation.reading.pictures import Pictures
from mmtune.evaluation.reading.tables import Row
from mmtune.evaluation.scorers.captions import ORDERS, BleuCounts, bleu, bleu_counts, bleu_total, cider, rouge_l
from mmtune.evaluation.scorers.java_ptb import tokenizer
from mmtune.evaluation.statistics import Array, cluster_interval, mean_interval


class COCOCaption(PublicBenchmark):
    """BLEU-1 to 4 and ROUGE-L, 0 to 1, and CIDEr, at most 10, which depends on what other pictures there are."""

    name: ClassVar[str] = "coco_caption"
    scorer: ClassVar[str] = "pycocoevalcap BLEU, ROUGE-L, CIDEr"
    primary: ClassVar[str | None] = "CIDEr"
    file_names: ClassVar[tuple[str, ...]] = ("captions_*.json", "COCO*.tsv", "*coco*.tsv", "*.parquet")

    def tsv_row(self, row: Row, pictures: list[Any]) -> Sample:
        index = str(column(row, "index"))
        names = {"index": index} | ({"image_id": str(row["image_id"])} if row.get("image_id") else {})
        return _row(index, pictures, row.get("answer"), names, str(row.get("question") or CAPTION))

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        found = []
        for row in rows:
            file = str(column(row, "question_id", "file_name", "id"))
            digits = Path(file).stem.rpartition("_")[2]
            names = {"question_id": file} | ({"image_id": str(int(digits))} if digits.isdecimal() else {})
            found.append(_row(file, pictures.cell(row.get("image")), row.get("answer"), names))
        return found

    def json_rows(self, value: Any, path: Path, pictures: Pictures) -> tuple[list[Sample], list[Path]]:
        if not isinstance(value, Mapping) or not {"images", "annotations"} <= set(value):
            raise self._unknown("a JSON file")
        captions: dict[str, list[str]] = {}
        for row in value["annotations"]:
            captions.setdefault(str(row["image_id"]), []).append(str(row["caption"]))
        found = []
        for row in value["images"]:
            name, file = str(row["id"]), str(column(row, "file_name"))
            shown = [pictures.file(file, f"val2014/{file}")]
            found.append(_row(name, shown, captions.get(name), {"image_id": name}))
        return found, []

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        tokenize = tokenizer()
        texts = [said(record) for record in records]
        references = [sample.extra["answer"] for sample in samples]
        flat = tokenize.comparable([*texts, *(text for group in references for text in group)])
        captions, rest = flat[: len(texts)], iter(flat[len(texts) :])
        golds = [[next(rest) for _ in group] for group in references]
        ciders = cider(captions, golds)
        rouges = [rouge_l(caption, group) for caption, group in zip(captions, golds, strict=True)]
        counts = [bleu_counts(caption, group) for caption, group in zip(captions, golds, strict=True)]
        items = [
            _item(sample, record, caption, {"CIDEr": ciders[at], "ROUGE_L": rouges[at], "Bleu_4": bleu(counts[at])[3]})
            for at, (sample, record, caption) in enumerate(zip(samples, records, captions, strict=True))
        ]
        bleus = dict(zip(_bleu_names(), bleu(bleu_total(counts)), strict=True))
        means = {"ROUGE_L": sum(rouges) / len(rouges), "CIDEr": sum(ciders) / len(ciders)}
        clusters = [sample.id for sample in samples]
        confidence = _bleu_intervals(counts, clusters)
        confidence |= {"ROUGE_L": mean_interval(rouges, clusters), "CIDEr": mean_interval(ciders, clusters)}
        scores = {**bleus, **means, "tokenizer": tokenize.name}
        return Scores(scores, items, confidence, scorer=f"{self.scorer}; {tokenize.name}")


def _row(id: str, pictures: list[Any], answers: Any, names: Mapping[str, str], prompt: str = CAPTION) -> Sample:
    return question(id, prompt, pictures, answer=golds_of(answers), names=dict(names), cluster=id)


def _item(sample: Sample, record: Record, caption: str, scores: Mapping[str, float]) -> dict[str, Any]:
    item = {"id": sample.id, "prediction": said(record), "extracted": caption, "how": "tokens"}
    item |= {"gold": sample.extra["answer"], "score": scores["CIDEr"], **scores}
    return item | ({"error": record["error"]} if "error" in record else {})


def _bleu_names() -> list[str]:
    return [f"Bleu_{order}" for order in range(1, ORDERS + 1)]


def _bleu_intervals(counts: Sequence[BleuCounts], clusters: Sequence[str]) -> dict[str, Any]:
    """Intervals of BLEU over pictures, from sums of its counts."""
    statistics = np.array([[each.length, each.closest, *each.guessed, *each.right] for each in counts])
    found = {}
    for order, name in enumerate(_bleu_names()):

        def measured(sums: Array, order: int = order) -> Array:
            totals = [BleuCounts(row[0], row[1], tuple(row[2 : 2 + ORDERS]), tuple(row[2 + ORDERS :])) for row in sums]
            return np.array([bleu(total)[order] for total in totals])

        found[name] = cluster_interval(statistics, clusters, measured)
    return found
