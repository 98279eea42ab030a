"""Rows on which runs disagree: one says what is right and another does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmtune.data.sample import Sample
from mmtune.evaluation.output import drawable
from mmtune.report.compare.evaluations import Key
from mmtune.report.compare.ranking import Table
from mmtune.report.gallery import Shown, show, spread


@dataclass(frozen=True)
class Disagreement:
    """One row.

    Attributes:
        answers: What each run said, and whether it is right.
        sample: With its pictures, where the data can still be read.
    """

    table: str
    id: str
    gold: str
    answers: Mapping[str, tuple[str, bool]]
    sample: Sample | None

    def to_json(self) -> dict[str, Any]:
        """Text only."""
        answers = {name: {"text": text, "right": right} for name, (text, right) in self.answers.items()}
        return {"evaluation": self.table, "id": self.id, "gold": self.gold, "answers": answers}

    def card(self) -> Shown:
        """For a gallery."""
        said = {name: text for name, (text, _) in self.answers.items()}
        right = {name: verdict for name, (_, verdict) in self.answers.items()}
        if self.sample is None:
            answers = tuple((name, text, verdict) for name, (text, verdict) in self.answers.items())
            return Shown(self.id, (), f"row {self.id}", self.gold, answers)
        return replace(show(drawable(self.sample), said, right), gold=self.gold)


def disagreements(table: Table, count: int) -> tuple[list[Disagreement], int]:
    """Up to ``count`` rows spread over the data, and how many there are in all."""
    if len(table.entries) < 2 or not table.ranked:
        return [], 0
    scores = {name: one.scores() for name, one in table.entries}
    items = {name: one.items for name, one in table.entries}
    first = table.entries[0][1].items
    if any("nll" in item for item in first.values()):
        return [], 0
    keys = [key for key in first if all(key in found for found in scores.values())]
    split = [key for key in keys if len({found[key] > 0 for found in scores.values()}) > 1]
    return [_one(table, key, items, scores, table.samples.get(key)) for key in _chosen(split, count)], len(split)


def _chosen(keys: list[Key], count: int) -> list[Key]:
    return [keys[place] for place in spread(count, len(keys))]


def _one(
    table: Table,
    key: Key,
    items: Mapping[str, Mapping[Key, Mapping[str, Any]]],
    scores: Mapping[str, Mapping[Key, float]],
    sample: Sample | None,
) -> Disagreement:
    given = next(iter(items.values()))[key].get("gold", "")
    gold = ", ".join(map(str, given)) if isinstance(given, list) else str(given)
    said = {name: (str(found[key].get("prediction", "")), scores[name][key] > 0) for name, found in items.items()}
    return Disagreement(
        table.title, key[0], ", ".join(map(str, gold)) if isinstance(gold, list) else str(gold), said, sample
    )
