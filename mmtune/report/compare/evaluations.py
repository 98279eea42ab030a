"""Evaluations of runs, found where `mmtune eval` left them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmtune.core.errors import MMTuneError
from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Options, Place
from mmtune.evaluation.fingerprint import files_sha256
from mmtune.evaluation.output import verdict_of
from mmtune.evaluation.reading.pictures import cluster_of
from mmtune.evaluation.run import make_task
from mmtune.report.compare.runs import Run

SCORES, ITEMS = "scores.json", "items.jsonl"
Key = tuple[str, int]  # a row's id and how many rows before it have the same


@dataclass(frozen=True)
class Evaluation:
    """One folder that an evaluation wrote."""

    folder: Path
    result: Mapping[str, Any]

    @property
    def contract(self) -> Mapping[str, Any] | None:
        """Its conditions; None for those made before conditions were recorded."""
        return self.result.get("contract")

    @property
    def title(self) -> str:
        """The benchmark and the name of the data, or of the folder where the data had none."""
        data = self.result.get("data")
        return f"{self.result['benchmark']} · {Path(data).stem if data else self.folder.name}"

    @cached_property
    def items(self) -> dict[Key, dict[str, Any]]:
        """What was said to each row and what it scored."""
        return dict(_keyed(list(_lines(self.folder / ITEMS))))

    def scores(self) -> dict[Key, float]:
        """A number for each row that has one: its verdict, or its loss."""
        found = {key: verdict_of(item) if "nll" not in item else item["nll"] for key, item in self.items.items()}
        return {key: float(value) for key, value in found.items() if isinstance(value, int | float)}

    @cached_property
    def samples(self) -> dict[Key, Sample]:
        """The rows with their pictures; empty when the data is gone or has changed."""
        data, terms = self.result.get("data"), self.contract
        if data is None or terms is None:
            return {}
        options = Options(rule=terms["rule"], pandas_na=terms["pandas_na"], prompt=terms["prompt_style"])
        for start in (Path(), *self.folder.resolve().parents):  # the working directory of its day may be above it
            if not (start / data).exists():
                continue
            roots = tuple(start / root for root in self.result.get("media_root") or ())
            try:
                table = make_task(terms["benchmark"], options).read(Place(start / data, roots))
                if files_sha256(list(table.files)) == terms["data_sha256"]:
                    return dict(_keyed(table.samples))
            except MMTuneError:
                continue
        return {}


def clusters(samples: Mapping[Key, Sample], keys: Sequence[Key]) -> list[str]:
    """What rows were drawn together, as far as the data can still be read; else every row is on its own."""
    return [_cluster(samples.get(key), key) for key in keys]


def _cluster(sample: Sample | None, key: Key) -> str:
    alone = f"{key[0]}#{key[1]}"
    if sample is None:
        return alone
    return str(sample.extra.get("cluster") or cluster_of((item.uri for item in sample.media), alone))


def find_evaluations(run: Run, weights: tuple[str, str, str] | None = None) -> tuple[list[Evaluation], list[str]]:
    """The evaluations in a run's folder, and those under ``runs/eval`` or ``eval`` beside it that name its model.

    Args:
        weights: Fingerprint, dtype and device of the model as it is now: evaluations of other weights are left out.

    Returns:
        The newest of each set of conditions, in the order of their names, and notes on what was left out.
    """
    found: dict[str, Evaluation] = {}
    notes = []
    for evaluation in evaluations_of(run.folder):
        path = evaluation.folder / SCORES
        if _is_of_other_weights(evaluation, weights):
            notes.append(f"{path.parent} is of other weights than the run has now: evaluate it again")
            continue
        key = json.dumps(evaluation.contract, sort_keys=True) if evaluation.contract else str(path)
        if key not in found or path.stat().st_mtime >= (found[key].folder / SCORES).stat().st_mtime:
            found[key] = evaluation
    return list(found.values()), notes


def evaluations_of(run: Path) -> list[Evaluation]:
    """All evaluations in the folder of a run, and those beside it that name its model, in the order of their paths."""
    found = [read_evaluation(path) for path in sorted(_score_files(run))]
    return [one for one in found if one is not None and (one.folder.is_relative_to(run) or _is_of(one, run))]


def _score_files(run: Path) -> set[Path]:
    places = (run, run.parent / "eval", Path("runs", "eval"))
    seen = {path.absolute(): path for place in places for path in place.rglob(SCORES)}
    return set(seen.values())


def read_evaluation(path: Path) -> Evaluation | None:
    """The evaluation of a file of scores; None for a file of another program, or one that is being written."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(result, dict) and "benchmark" in result and "scores" in result
    return Evaluation(path.parent, result) if whole else None


def _is_of(evaluation: Evaluation, run: Path) -> bool:
    """Whether it names the run or its model, as a path from here or from where the run was made."""
    name = evaluation.result.get("model")
    if not name:
        return False
    own = {run.resolve(), (run / "model").resolve()}
    return any((start / str(name)).resolve() in own for start in (Path(), run.resolve().parent.parent))


def _is_of_other_weights(evaluation: Evaluation, weights: tuple[str, str, str] | None) -> bool:
    """Fingerprints are compared where they were taken alike; sums differ in their last bit between devices."""
    result, terms = evaluation.result, evaluation.contract or {}
    if weights is None or result.get("model_fingerprint") is None:
        return False
    alike = (terms.get("dtype"), result.get("device")) == weights[1:]
    return alike and result["model_fingerprint"] != weights[0]


def _keyed(rows: Sequence[Any]) -> Iterator[tuple[Key, Any]]:
    times: dict[str, int] = {}
    for row in rows:
        name = str(row.id if isinstance(row, Sample) else row.get("id"))
        yield (name, times.get(name, 0)), row
        times[name] = times.get(name, 0) + 1


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for line in text.split("\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue
