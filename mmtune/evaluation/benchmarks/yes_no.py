"""What benchmarks of yes/no questions share: VLMEvalKit's verdict on each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Record, said
from mmtune.evaluation.scorers.yes_no import UNKNOWN, vlmevalkit_yes_no


def has_yes_or_no(sample: Sample) -> bool:
    """Whether the gold answer is one of the two."""
    return str(sample.extra.get("answer")).lower() in ("yes", "no")


def yes_no_items(samples: Sequence[Sample], records: Sequence[Record]) -> list[dict[str, Any]]:
    """One verdict a row: ``Yes``, ``No`` or ``Unknown``, which is wrong."""
    return [_item(sample, record) for sample, record in zip(samples, records, strict=True)]


def yes_no_unknown(items: Sequence[Mapping[str, Any]]) -> int:
    """Answers that say neither; failed rows are counted elsewhere."""
    return sum(item["extracted"] == UNKNOWN and "error" not in item for item in items)


def _item(sample: Sample, record: Record) -> dict[str, Any]:
    gold = str(sample.extra["answer"])
    said_it = UNKNOWN if "error" in record else vlmevalkit_yes_no(said(record))
    item = {"id": sample.id, "prediction": said(record), "extracted": said_it, "how": "words", "gold": gold}
    item["score"] = int(said_it.lower() == gold.lower())
    return item | ({"error": record["error"]} if "error" in record else {})
