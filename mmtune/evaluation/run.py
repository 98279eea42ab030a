"""One evaluation from data to a scored result: resumable, counted, with nothing silent."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.core.errors import DataError, NotPossibleError, ScoreError, UsageError, unknown_name
from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks import BENCHMARKS
from mmtune.evaluation.benchmarks.base import Benchmark, Options, Place, Record, Scores, Table
from mmtune.evaluation.collect import Job, Progress, collect, evaluation_key
from mmtune.evaluation.contract import contract, main_score
from mmtune.evaluation.fingerprint import files_sha256, model_fingerprint
from mmtune.evaluation.output import make_folder, write_output
from mmtune.evaluation.predictions import read_predictions
from mmtune.evaluation.prompts import STYLES

if TYPE_CHECKING:
    from mmtune.model.decoding import Decoding

__all__ = ["Limits", "evaluate"]

NEW_TOKENS = 128
"""How long answers may become unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When an evaluation is refused although it could be scored.

    Args:
        max_failures: More failed rows than this stop the run; None allows any number, but not all rows.
        allow_partial: Score although rows have no prediction; only the rows that have one are scored then.
        min_score: The least value of the benchmark's main score.
    """

    max_failures: int | None = None
    allow_partial: bool = False
    min_score: float | None = None


def evaluate(
    model: Any = None,
    processor: Any = None,
    *,
    benchmark: str = "qa",
    data: str | Path | Sequence[Sample],
    media_root: Sequence[str | Path] = (),
    predictions: str | Path | None = None,
    output: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    decoding: Decoding | None = None,
    limits: Limits | None = None,
    options: Options | None = None,
    shard: tuple[int, int] = (0, 1),
    model_name: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask a model about a data set, or take given predictions, and score them.

    Args:
        model: The model and its processor; not needed with ``predictions``.
        data: The benchmark's data file or the folder that holds it, or samples.
        output: Folder for ``predictions.jsonl`` (append-only: the same call goes on where it was interrupted),
            ``items.jsonl``, ``scores.json``, the report and the export; without it nothing is written.
        limit: Only the first rows; of circular sets the first questions with all their rotations.
        decoding: Greedy with 128 new tokens unless given.
        options: Rule of the scorer, how tables are read, wording of prompts.
        shard: Number of this process and of all processes. Each asks its share of the rows and keeps the answers in
            ``output``; scoring is left to whoever finds all rows answered.
        model_name: What the result calls the model.
        progress: Called with the rows done and the rows in all.

    Returns:
        The JSON object of the verb ``eval``.

    Raises:
        DataError: Rows that cannot be scored, missing predictions, too many failed rows.
        ScoreError: The score is below the minimum; the output is complete all the same.
        UsageError: An unknown benchmark, or a minimum for a benchmark that has none.
        NotPossibleError: A rule or a way of reading that the benchmark does not have.
    """
    task, limits = make_task(benchmark, options or Options()), limits or Limits()
    _check_usage(task, model, predictions, limits)
    table, sha = _table(task, data, media_root, limit, look=predictions is None)
    task.check(samples := table.samples)
    folder, ignored, fingerprint = make_folder(output), 0, None
    if predictions is not None:
        decoding = None
        records, ignored = read_predictions(Path(predictions), samples, task)
    else:
        decoding, fingerprint = decoding or _default_decoding(), model_fingerprint(model)
        key = evaluation_key(task, sha, fingerprint, decoding)
        job = Job(decoding, batch_size, limits.max_failures, folder, key, progress, shard)
        records = collect(task, model, processor, samples, job)
    _check_complete(samples, records, limits, "--data" if predictions is None else str(predictions))
    facts = {"ignored_predictions": ignored, "model": model_name, "model_fingerprint": fingerprint, "data_sha256": sha}
    facts |= _whereabouts(data, media_root) | {"device": None if fingerprint is None else model.device.type}
    asked = (decoding, None if fingerprint is None else str(model.dtype).removeprefix("torch."))
    return _scored(task, table, records, folder, limits, facts, asked)


def _scored(
    task: Benchmark,
    table: Table,
    records: dict[int, Record],
    folder: Path | None,
    limits: Limits,
    facts: Mapping[str, Any],
    asked: tuple[Decoding | None, str | None],
) -> dict[str, Any]:
    """The result of the rows that have records, written and checked against the limits.

    Args:
        asked: How the model was asked and in which dtype; None twice for given answers.
    """
    rows = sorted(records)
    samples = [table.samples[row] for row in rows]
    scored = task.score(samples, [records[row] for row in rows])
    result = _result(task, scored, records, missing=len(table.samples) - len(rows))
    terms = contract(task, scored, samples, str(facts["data_sha256"]), *asked)
    result |= {**facts, "output": str(folder) if folder else None}
    result |= {"main_score": main_score(task, scored), "contract": terms}
    if folder:
        write_output(folder, result, scored, replace(table, samples=samples))
    _check_failed(records, limits)
    _check_score(task, scored, limits, result)
    return result


def _whereabouts(data: str | Path | Sequence[Sample], media_root: Sequence[str | Path]) -> dict[str, Any]:
    """Where rows and pictures are, for whoever shows them; nothing for samples in memory."""
    if not isinstance(data, str | Path):
        return {}
    return {"data": str(data), "media_root": [str(root) for root in media_root]}


def make_task(benchmark: str, options: Options) -> Benchmark:
    """The benchmark of a name with its options.

    Raises:
        UsageError: No such benchmark or wording.
        NotPossibleError: It has no such rule, or reads no tables.
    """
    task: Benchmark = BENCHMARKS.load(benchmark, where="--benchmark")(options)
    if options.prompt not in STYLES:
        raise unknown_name("prompt style", options.prompt, STYLES, where="options.prompt")
    if options.rule not in task.rules:
        raise NotPossibleError(
            f"'{task.name}' has no rule '{options.rule}'; it has: {', '.join(task.rules)}.",
            where="--rule",
            fix="leave --rule out",
        )
    if options.pandas_na and not task.reads_tables:
        message = f"--pandas-na concerns tables of public benchmarks; '{task.name}' reads none."
        raise NotPossibleError(message, where="--pandas-na", fix="leave --pandas-na out")
    return task


def _default_decoding() -> Decoding:
    from mmtune.model.decoding import Decoding

    return Decoding(max_new_tokens=NEW_TOKENS)


def _check_usage(task: Benchmark, model: Any, predictions: str | Path | None, limits: Limits) -> None:
    if predictions is None and model is None:
        raise UsageError("Neither a model nor predictions.", fix="give --model or --predictions")
    if predictions is not None and not task.reads_predictions:
        raise UsageError(
            f"'{task.name}' needs a model; there are no predictions to score.", fix="leave out --predictions"
        )
    if limits.min_score is not None and not math.isfinite(limits.min_score):
        raise UsageError(f"The minimum is {limits.min_score}.", where="--min-score", fix="give a number")
    if limits.min_score is not None and task.primary is None:
        raise UsageError(f"'{task.name}' has no score that is better when higher.", fix="leave out --min-score")


def _table(
    task: Benchmark,
    data: str | Path | Sequence[Sample],
    media_root: Sequence[str | Path],
    limit: int | None,
    *,
    look: bool,
) -> tuple[Table, str]:
    """The rows and the hash of their files; samples in memory are hashed as they are."""
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}.", where="--limit", fix="give 1 or more")
    if isinstance(data, str | Path):
        table = task.read(Place(Path(data), tuple(media_root), look))
        sha = files_sha256(list(table.files))
    else:
        table = Table(list(data), [])
        sha = hashlib.sha256("\n".join(repr(sample) for sample in data).encode()).hexdigest()
    if not table.samples:
        where = str(data) if isinstance(data, str | Path) else None
        raise DataError("No rows.", where=where, fix="give a file with rows")
    return (table if limit is None else replace(table, samples=task.first(table.samples, limit))), sha


def _check_complete(samples: Sequence[Sample], records: dict[int, Record], limits: Limits, where: str) -> None:
    missing = [sample.id for row, sample in enumerate(samples) if row not in records]
    if missing and (not limits.allow_partial or not records):
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise DataError(
            f"{len(missing)} of {len(samples)} rows have no prediction: {shown}.",
            where=where,
            fix="add them, or give --allow-partial to score the others" if records else "give answers with these ids",
        )
    failed = [record for record in records.values() if "error" in record]
    if records and len(failed) == len(records):
        first = failed[0]["error"]
        message = first.get("message", first) if isinstance(first, dict) else first
        raise DataError(f"All {len(failed)} rows failed; the first: {message}", where=where, fix="mend the rows")


def _check_failed(records: dict[int, Record], limits: Limits) -> None:
    """Given answers may hold failed rows as well; a model's are counted while it is asked."""
    failed = sum("error" in record for record in records.values())
    if limits.max_failures is not None and failed > limits.max_failures:
        raise DataError(
            f"{failed} rows failed, {limits.max_failures} are allowed.", fix="mend the rows, or raise --max-failures"
        )


def _check_score(task: Benchmark, scored: Scores, limits: Limits, result: dict[str, Any]) -> None:
    if limits.min_score is None or task.primary is None:
        return
    if not scored.scores:
        raise UsageError("There is no score to compare with the minimum.", where="--min-score", fix="leave it out")
    name, value = task.main_score(scored.scores)
    if not value >= limits.min_score:
        error = ScoreError(
            f"{name} is {value:.4f}, at least {limits.min_score:.4f} was asked for.",
            where=task.name,
            fix="train longer or on more data, or lower --min-score",
        )
        error.result = result
        raise error


def _result(task: Benchmark, scored: Scores, records: dict[int, Record], *, missing: int) -> dict[str, Any]:
    return {
        "benchmark": task.name,
        "scorer": scored.scorer or task.scorer,
        "rule": task.options.rule,
        "scores": dict(scored.scores),
        "n": len(records),
        "missing": missing,
        "uninferred": scored.uninferred,
        "failed": sum("error" in record for record in records.values()),
        "confidence": dict(scored.confidence),
        **scored.top_level,
    }
