"""Multiple-choice questions from VLMEvalKit's tables: how they are read, asked, and scored by option letters."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Record, Scores, said
from mmtune.evaluation.benchmarks.public import PublicBenchmark, column, one_answer
from mmtune.evaluation.prompts import choice_prompt, question
from mmtune.evaluation.reading.pictures import Pictures, cluster_of
from mmtune.evaluation.reading.tables import Row
from mmtune.evaluation.scorers.letters import RULES, infer_option
from mmtune.evaluation.statistics import mean_table

ABBREVIATIONS = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
"""VLMEvalKit's short names of MMBench's abilities."""


class MultipleChoice(PublicBenchmark):
    """Shares of right letters, overall, by ability (``l2-category``) and by category, for each split."""

    scorer: ClassVar[str] = "VLMEvalKit exact matching, vanilla accuracy (0-1)"
    rules: ClassVar[tuple[str, ...]] = RULES
    primary: ClassVar[str | None] = "Overall"

    def tsv_row(self, row: Row, pictures: list[Any]) -> Sample:
        options = options_of(row)
        prompt = choice_prompt(str(column(row, "question")), options, row.get("hint"), self.options.prompt)
        return question(
            index_of(row),
            prompt,
            pictures,
            answer=row.get("answer"),
            options=options,
            split=row.get("split") or "none",
            category=row.get("category"),
            l2=row.get("l2-category"),
            names={"index": index_of(row)},
            cluster=cluster_of(pictures, index_of(row)),
        )

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        """Rows of Hugging Face's tables, in which the text "nan" stands for an empty cell."""
        cleared = [{name: None if cell == "nan" else cell for name, cell in row.items()} for row in rows]
        return [self.tsv_row(row, pictures.cell(row.get("image"))) for row in cleared]

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        items = self.items(samples, records)
        scores, confidence = accuracy_tables(samples, [item["hit"] for item in items])
        return Scores(scores, items, confidence, uninferred(items))

    def has_gold(self, sample: Sample) -> bool:
        """Whether there are options, and the gold answer is a letter."""
        return bool(sample.extra["options"]) and str(sample.extra["answer"]) in tuple(string.ascii_uppercase)

    def main_score(self, scores: Mapping[str, Any]) -> tuple[str, float]:
        """The overall share of the validation split, or else of the first one."""
        split = next((name for name in ("validation", "test", "dev") if name in scores), next(iter(scores)))
        return f"{split}.{self.primary}", float(scores[split][str(self.primary)] or 0.0)

    def items(self, samples: Sequence[Sample], records: Sequence[Record]) -> list[dict[str, Any]]:
        """One verdict a row."""
        return [self.item(sample, record) for sample, record in zip(samples, records, strict=True)]

    def item(self, sample: Sample, record: Record) -> dict[str, Any]:
        """The verdict of a row: the letter inferred, how, and whether it is the gold one."""
        gold, options = one_answer(sample), sample.extra["options"]
        found = infer_option(said(record), options, self.options.rule)
        item = {"id": sample.id, "prediction": said(record), "extracted": found.letter, "how": found.how, "gold": gold}
        if "error" in record:
            item |= {"error": record["error"], "extracted": None, "how": "failed"}
        return item | {"hit": int(item["extracted"] == gold)}


def index_of(row: Row) -> str:
    """The index of a row; whole numbers in their plain spelling."""
    text = str(column(row, "index"))
    return str(int(text)) if text.isdecimal() else text


def options_of(row: Row) -> dict[str, str]:
    """The options of a row: every column named by a capital letter that has something in it."""
    return {letter: str(row[letter]) for letter in string.ascii_uppercase if row.get(letter) is not None}


def uninferred(items: Sequence[Mapping[str, Any]]) -> int:
    """Answers from which no letter could be inferred; failed rows are counted elsewhere."""
    return sum(item["extracted"] is None and "error" not in item for item in items)


def accuracy_tables(
    samples: Sequence[Sample], hits: Sequence[float], *, prefix: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One table of shares a split, and the intervals under dotted names (``dev.Overall``).

    Args:
        prefix: Stands before the names of the splits.
    """
    tables: dict[str, Any] = {}
    confidence: dict[str, Any] = {}
    clusters = [sample.extra["cluster"] for sample in samples]
    for split in sorted({sample.extra["split"] for sample in samples}):
        rows = [at for at, sample in enumerate(samples) if sample.extra["split"] == split]
        groups = {"Overall": rows}
        for key in ("l2", "category"):
            for name in sorted({sample.extra[key] for sample in samples if sample.extra[key] is not None}):
                groups[ABBREVIATIONS.get(name, name)] = [at for at in rows if samples[at].extra[key] == name]
        tables[prefix + split], intervals = mean_table(groups, hits, clusters)
        confidence |= {f"{prefix}{split}.{name}": interval for name, interval in intervals.items()}
    return tables, confidence
