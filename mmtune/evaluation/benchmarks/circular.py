"""Circular evaluation: a question counts only when it is right under every rotation of its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Record, Scores, said
from mmtune.evaluation.benchmarks.multiple_choice import MultipleChoice, accuracy_tables, index_of, uninferred
from mmtune.evaluation.reading.tables import Row

ROTATION = 1_000_000
"""What a rotation's index is larger by than that of the row it rotates."""


class Circular(MultipleChoice):
    """Groups of rotations; rows without a base row, or with a rotation missing from the answers, are left out.

    ``vanilla_0_<split>`` are base rows alone, ``vanilla_all_<split>`` all rows.
    """

    scorer: ClassVar[str] = "VLMEvalKit exact matching, circular accuracy (0-1)"
    submits: ClassVar[bool] = True

    def tsv_rows(self, rows: Sequence[Row], pictures: Sequence[list[Any]]) -> list[Sample]:
        samples = super().tsv_rows(rows, pictures)
        given = {index_of(row): row.get("g_index") for row in rows}
        return _with_sizes([_grouped(sample, given.get(sample.id)) for sample in samples])

    def parquet_rows(self, rows: Sequence[Row], pictures: Any) -> list[Sample]:
        samples = super().parquet_rows(rows, pictures)
        return _with_sizes([_grouped(sample, row.get("g_index")) for sample, row in zip(samples, rows, strict=True)])

    def first(self, samples: Sequence[Sample], limit: int) -> list[Sample]:
        """The first base questions with all their rotations."""
        groups = list(dict.fromkeys(sample.extra["group"] for sample in samples))[:limit]
        kept = set(groups)
        return [sample for sample in samples if sample.extra["group"] in kept]

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        if not any(sample.extra["answer"] for sample in samples):
            return _unscored(samples, records)
        items = self.items(samples, records)
        groups: dict[str, list[int]] = {}
        for at, sample in enumerate(samples):
            groups.setdefault(sample.extra["group"], []).append(at)
        bases, hits, incomplete = [], [], 0
        for name, rows in groups.items():
            base = next((at for at in rows if samples[at].extra["base"]), None)
            if base is None or len(rows) < samples[base].extra["group_size"]:
                incomplete += 1
                continue
            bases.append(base)
            hits.append(int(all(items[at]["hit"] for at in rows)))
            items[base]["group_hit"] = hits[-1]
            for at in rows:
                items[at]["group"] = name
        if not bases:
            message = "No base question has the answers to all its rotations."
            raise DataError(message, fix="give the missing answers, or another file")
        return self._scores(samples, items, bases, hits, incomplete)

    def _scores(
        self,
        samples: Sequence[Sample],
        items: Sequence[dict[str, Any]],
        bases: Sequence[int],
        hits: Sequence[int],
        incomplete: int,
    ) -> Scores:
        shown = [samples[at] for at in bases]
        scores, confidence = accuracy_tables(shown, hits)
        for prefix, rows in (("vanilla_0_", bases), ("vanilla_all_", range(len(samples)))):
            tables, intervals = accuracy_tables(
                [samples[at] for at in rows], [items[at]["hit"] for at in rows], prefix=prefix
            )
            scores |= tables
            confidence |= intervals
        top_level = {"incomplete_groups": incomplete} if incomplete else {}
        return Scores(scores, items, confidence, uninferred(items), top_level)


def _unscored(samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
    """The answers to a split whose gold answers are not public; the export is what is submitted."""
    items = [{"id": sample.id, "prediction": said(record)} for sample, record in zip(samples, records, strict=True)]
    return Scores({}, items, {}, scorer="none: the answers to this split are not public")


def _grouped(sample: Sample, given: Any) -> Sample:
    """The row with the group that it belongs to, and whether it is the one that the others rotate.

    Args:
        given: The index of that one, where the table names it; else indices tell.
    """
    group = str(given) if given is not None else sample.id
    if given is None and sample.id.isdecimal():
        group = str(int(sample.id) % ROTATION)
    return replace(sample, extra={**sample.extra, "group": group, "base": group == sample.id})


def _with_sizes(samples: Sequence[Sample]) -> list[Sample]:
    """The rows with the number of rows in their group, by which an incomplete one is noticed."""
    sizes: dict[str, int] = {}
    for sample in samples:
        sizes[sample.extra["group"]] = sizes.get(sample.extra["group"], 0) + 1
    return [replace(sample, extra={**sample.extra, "group_size": sizes[sample.extra["group"]]}) for sample in samples]
