"""What benchmarks with several gold answers a question share: reading them, and a mean with its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Record, said
from mmtune.evaluation.reading.pictures import listed
from mmtune.evaluation.statistics import mean_table


def golds_of(value: Any) -> list[str]:
    """The answers of the annotators, in any of the forms in which files hold them."""
    if value is None:
        return []
    items = listed(value) if isinstance(value, str) else list(value)
    return [str(item["answer"]) if isinstance(item, Mapping) else str(item) for item in items]


def has_annotators(sample: Sample) -> bool:
    """Whether several people have answered; the measure leaves one of them out."""
    return len(sample.extra.get("answer") or ()) > 1


def annotated_items(
    samples: Sequence[Sample],
    records: Sequence[Record],
    normalize: Callable[[str], str],
    accuracy: Callable[[str, Sequence[str]], float],
) -> list[dict[str, Any]]:
    """One verdict a row; ``score`` is the accuracy against the annotators, 0 to 1."""
    items = []
    for sample, record in zip(samples, records, strict=True):
        text, golds = said(record), sample.extra["answer"]
        item = {"id": sample.id, "prediction": text, "extracted": normalize(text), "how": "normalised", "gold": golds}
        if "error" in record:
            items.append(item | {"error": record["error"], "how": "failed", "score": 0.0})
        else:
            items.append(item | {"score": accuracy(text, golds)})
    return items


def rounded_tables(
    samples: Sequence[Sample], values: Sequence[float], tables: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The official form of scores: ``overall`` and one table a kind, in percent, rounded to two places.

    Args:
        tables: Name of a table to the key of ``extra`` that it is made by.
    """
    clusters = [sample.extra["cluster"] for sample in samples]
    overall, confidence = mean_table({"overall": list(range(len(samples)))}, values, clusters, 100)
    scores: dict[str, Any] = {"overall": round(overall["overall"] or 0.0, 2)}
    for table, key in tables.items():
        groups: dict[str, list[int]] = {}
        for at, sample in enumerate(samples):
            groups.setdefault(str(sample.extra[key]), []).append(at)
        means, intervals = mean_table(groups, values, clusters, 100)
        scores[table] = {name: round(mean or 0.0, 2) for name, mean in means.items()}
        confidence |= {f"{table}.{name}": interval for name, interval in intervals.items()}
    return scores, confidence
