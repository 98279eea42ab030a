"""MMMU: college-level questions of six disciplines, with several pictures and some open answers.

Source:
    Yue et al. 2023 (arXiv 2311.16502); scored as VLMEvalKit does without a judge, and by MMMU's own parser as a second
    score, where a random option that the parser would draw counts as wrong.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample, Turn
from mmtune.evaluation.benchmarks.base import Record, Scores, said
from mmtune.evaluation.benchmarks.multiple_choice import MultipleChoice, index_of, options_of
from mmtune.evaluation.benchmarks.public import column
from mmtune.evaluation.prompts import choice_prompt, interleaved, question
from mmtune.evaluation.reading.pictures import Pictures, cluster_of, listed
from mmtune.evaluation.reading.tables import Row
from mmtune.evaluation.scorers.mmmu import open_is_right, parse_choice, parse_open
from mmtune.evaluation.statistics import mean_table

DISCIPLINES = {
    "Art & Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health & Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities & Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech & Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_OTHER = "Other Answers"
_MOST_PICTURES = 7


class MMMU(MultipleChoice):
    """MMMU from VLMEvalKit's table (dev and validation) or the one on Hugging Face.

    ``official`` holds the second score, on validation rows alone.
    """

    name: ClassVar[str] = "mmmu"
    file_names: ClassVar[tuple[str, ...]] = ("MMMU_DEV_VAL*.tsv", "MMMU*.tsv", "*mmmu*.tsv", "*.parquet")

    def tsv_row(self, row: Row, pictures: list[Any]) -> Sample:
        index = index_of(row)
        names = {"index": index} | ({"id": str(row["id"])} if row.get("id") else {})
        subject, discipline = row.get("category"), row.get("l2-category")
        split = str(row.get("split") or "none")
        return self._row(index, row, options_of(row), pictures, split, subject, discipline, names)

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        found = []
        for row in rows:
            name = str(column(row, "id"))
            split, _, rest = name.partition("_")
            subject = rest.rpartition("_")[0]
            discipline = next((key for key, subjects in DISCIPLINES.items() if subject in subjects), None)
            given = row.get("options") or []
            texts = listed(given) if isinstance(given, str) else given
            options = dict(zip(string.ascii_uppercase, map(str, texts), strict=False))
            shown = [
                picture for at in range(1, _MOST_PICTURES + 1) for picture in pictures.cell(row.get(f"image_{at}"))
            ]
            found.append(self._row(name, row, options, shown, split, subject, discipline, {"id": name}))
        return found

    def _row(
        self,
        id: str,
        row: Row,
        options: dict[str, str],
        pictures: list[Any],
        split: str,
        subject: Any,
        discipline: Any,
        names: dict[str, str],
    ) -> Sample:
        answer = str(row["answer"]) if row.get("answer") is not None else ""
        choice = "A" in options
        text = str(column(row, "question"))
        prompt = choice_prompt(text, options, row.get("hint"), self.options.prompt)
        sample = question(
            id,
            prompt,
            pictures,
            answer=answer if len(answer) == 1 and answer in string.ascii_uppercase else "A" if answer else "",
            golds=[answer] if choice else listed(answer),
            options=options if choice else {**options, "A": answer, "B": _OTHER},
            open=not choice,
            split=split,
            category=subject,
            l2=discipline,
            names=names,
            cluster=cluster_of(pictures, id),
        )
        if self.options.prompt == "vlmevalkit":
            return replace(sample, turns=(Turn("user", interleaved(prompt, pictures)),))
        return sample

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        found = super().score(samples, records)
        items = [dict(item) for item in found.items]
        rows = [at for at, sample in enumerate(samples) if sample.extra["split"] == "validation"]
        if not rows:
            return found
        for at in rows:
            items[at] |= _official(samples[at], records[at])
        table, intervals = _official_table([samples[at] for at in rows], [items[at]["official_hit"] for at in rows])
        confidence = {**found.confidence, **{f"official.{name}": each for name, each in intervals.items()}}
        scores = {**found.scores, "official": table}
        return replace(found, scores=scores, items=items, confidence=confidence)


def _official(sample: Sample, record: Record) -> dict[str, Any]:
    """The verdict of MMMU's own evaluation on one row."""
    if "error" in record:
        return {"official": None, "official_hit": 0}
    if sample.extra["open"]:
        values = parse_open(said(record))
        return {"official": values, "official_hit": int(open_is_right(values, sample.extra["golds"]))}
    letter = parse_choice(said(record), sample.extra["options"])
    return {"official": letter, "official_hit": int(letter in sample.extra["golds"])}


def _official_table(samples: Sequence[Sample], hits: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    clusters = [sample.extra["cluster"] for sample in samples]
    everything = {"overall": list(range(len(samples)))}
    subjects = {
        str(name): [at for at, sample in enumerate(samples) if sample.extra["category"] == name]
        for name in sorted({str(sample.extra["category"]) for sample in samples})
    }
    domains = {
        name.replace("&", "and"): [at for at, sample in enumerate(samples) if sample.extra["l2"] == name]
        for name in DISCIPLINES
    }
    domains = {name: rows for name, rows in domains.items() if rows}
    overall, intervals = mean_table(everything, hits, clusters)
    if overall["overall"] is None:
        raise DataError("There are no validation rows.", fix="give a table with the split 'validation'")
    found: dict[str, Any] = {"overall": overall["overall"]}
    for table, groups in (("per_subject", subjects), ("per_domain", domains)):
        found[table], more = mean_table(groups, hits, clusters)
        intervals |= {f"{table}.{name}": interval for name, interval in more.items()}
    return found, intervals
