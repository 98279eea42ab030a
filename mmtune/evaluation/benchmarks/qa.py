"""Questions with one right answer: any conversation file whose last turn is the gold answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Benchmark, Record, Scores, ask, place_of
from mmtune.evaluation.reading.pictures import cluster_of
from mmtune.evaluation.statistics import mean_interval

if TYPE_CHECKING:
    from mmtune.model.decoding import Decoding

METRICS = ("exact_match", "contains")


class QuestionAnswering(Benchmark):
    """Shares of answers that equal or contain the gold answer; case and final punctuation are ignored.

    Rows with a ``type`` are also scored by type; ``mean_over_types`` weighs every type the same.
    """

    name: ClassVar[str] = "qa"
    scorer: ClassVar[str] = "mmtune qa: exact match and containment, case and final punctuation ignored"
    primary: ClassVar[str | None] = "exact_match"

    def check(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if len(sample.turns) < 2 or not normalized(sample.answer or ""):
                raise DataError(
                    "The last turn of a row must be the gold answer of the assistant, with some text in it.",
                    where=place_of(sample),
                    fix="add the answer as the last turn, or take the row out",
                )

    def run(
        self, model: Any, processor: Any, samples: Sequence[Sample], *, decoding: Decoding, batch_size: int
    ) -> Iterator[tuple[int, Record]]:
        yield from ask(model, processor, samples, decoding=decoding, batch_size=batch_size)

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        items = [_item(sample, record) for sample, record in zip(samples, records, strict=True)]
        scores = _shares(items)
        by_type = _group(items)
        if by_type:
            scores["types"] = {name: {**_shares(group), "n": len(group)} for name, group in by_type.items()}
            scores["mean_over_types"] = {
                metric: sum(found[metric] for found in scores["types"].values()) / len(by_type) for metric in METRICS
            }
        clusters = [cluster_of((medium.uri for medium in sample.media), str(at)) for at, sample in enumerate(samples)]
        confidence = {metric: mean_interval([item[metric] for item in items], clusters) for metric in METRICS}
        return Scores(scores, items, confidence)


def normalized(text: str) -> str:
    """The text in the form that is compared: lower case, without blanks around it and punctuation at its end."""
    return text.strip().lower().rstrip(".,;:!?。！？ \t\n")


def verdict(prediction: str, gold: str) -> dict[str, int]:
    """1 or 0 for each metric."""
    said, right = normalized(prediction), normalized(gold)
    return {"exact_match": int(said == right), "contains": int(right in said)}


def _item(sample: Sample, record: Record) -> dict[str, Any]:
    gold = sample.answer or ""
    item: dict[str, Any] = {"id": sample.id, "prediction": record.get("prediction", ""), "gold": gold}
    if sample.extra.get("type") is not None:
        item["type"] = str(sample.extra["type"])
    if "error" in record:
        return item | {"error": record["error"]} | dict.fromkeys(METRICS, 0)
    return item | verdict(str(record.get("prediction", "")), gold)


def _shares(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {metric: sum(item[metric] for item in items) / max(1, len(items)) for metric in METRICS}


def _group(items: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        if "type" in item:
            groups.setdefault(item["type"], []).append(item)
    return groups
