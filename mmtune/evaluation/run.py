"""One evaluation from data to a scored result: resumable, counted, with nothing silent."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError, ResourceError, ScoreError, UsageError
from mmtune.data.dataset import load_samples
from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks import BENCHMARKS
from mmtune.evaluation.benchmarks.base import Benchmark, Record, Scores
from mmtune.evaluation.fingerprint import data_sha256, model_fingerprint
from mmtune.evaluation.predictions import PredictionLog, read_predictions
from mmtune.model.decoding import Decoding

DEFAULT_DECODING = Decoding(max_new_tokens=128)
Progress = Callable[[int, int], None]
_LOG = logging.getLogger(__name__)


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
    model_name: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask a model about a data set, or take given predictions, and score them.

    Args:
        model: The model and its processor; not needed with ``predictions``.
        data: A file or folder of conversations, or samples.
        output: Folder for ``predictions.jsonl`` (append-only: the same call goes on where it was interrupted),
            ``items.jsonl`` and ``scores.json``; without it nothing is written.
        limit: Only the first rows.
        decoding: Greedy with 128 new tokens unless given.
        model_name: What the result calls the model.
        progress: Called with the rows done and the rows in all.

    Returns:
        The JSON object of the verb ``eval``.

    Raises:
        DataError: Rows that cannot be scored, missing predictions, too many failed rows.
        ScoreError: The score is below the minimum; the output is complete all the same.
        UsageError: An unknown benchmark, or a minimum for a benchmark that has none.
    """
    task: Benchmark = BENCHMARKS.load(benchmark)()
    limits, decoding = limits or Limits(), decoding or DEFAULT_DECODING
    _check_usage(task, model, predictions, limits)
    samples, sha = _samples(data, media_root, limit)
    task.check(samples)
    folder = _make_folder(output)
    ignored = 0
    if predictions is not None:
        records, ignored = read_predictions(Path(predictions), samples)
    else:
        key = _key(task, sha, model_fingerprint(model), decoding)
        records = _collect(task, model, processor, samples, _Job(decoding, batch_size, limits, folder, key, progress))
    _check_complete(samples, records, limits)
    rows = sorted(records)
    scored = task.score([samples[row] for row in rows], [records[row] for row in rows])
    result = _result(task, scored, records, missing=len(samples) - len(rows))
    result |= {"ignored_predictions": ignored, "model": model_name, "data_sha256": sha}
    result["output"] = str(folder) if folder else None
    if folder:
        _write(folder, result, scored)
    _check_score(task, scored, limits, result)
    return result


@dataclass(frozen=True, slots=True)
class _Job:
    decoding: Decoding
    batch_size: int
    limits: Limits
    folder: Path | None
    key: str
    progress: Progress | None


def _collect(task: Benchmark, model: Any, processor: Any, samples: Sequence[Sample], job: _Job) -> dict[int, Record]:
    """The record of every row: those of an earlier, interrupted run first, then the model's."""
    log = PredictionLog(job.folder / "predictions.jsonl", job.key) if job.folder else None
    records = {row: record for row, record in (log.read() if log else {}).items() if row < len(samples)}
    if records:
        _LOG.info("%d of %d rows were answered before; going on with the rest", len(records), len(samples))
    todo = [row for row in range(len(samples)) if row not in records]
    failures = 0
    asked = [samples[row] for row in todo]
    for index, record in task.run(model, processor, asked, decoding=job.decoding, batch_size=job.batch_size):
        row = todo[index]
        records[row] = record
        if log:
            log.append(row, samples[row], record)
        if "error" in record:
            failures += 1
            _LOG.warning("row %s failed: %s", samples[row].id, record["error"]["message"])
            _check_failures(failures, record, samples[row], job)
        if job.progress:
            job.progress(len(records), len(samples))
    return records


def _check_failures(failures: int, record: Record, sample: Sample, job: _Job) -> None:
    allowed = job.limits.max_failures
    if allowed is not None and failures > allowed:
        raise DataError(
            f"{failures} rows failed, {allowed} are allowed; the last: {record['error']['message']}",
            where=sample.source or sample.id,
            fix="mend the rows, or raise --max-failures; answered rows are kept when an output is given",
        )


def _check_usage(task: Benchmark, model: Any, predictions: str | Path | None, limits: Limits) -> None:
    if predictions is None and model is None:
        raise UsageError("Neither a model nor predictions.", fix="give --model or --predictions")
    if predictions is not None and not task.reads_predictions:
        raise UsageError(
            f"'{task.name}' needs a model; there are no predictions to score.", fix="leave out --predictions"
        )
    if limits.min_score is not None and task.primary is None:
        raise UsageError(f"'{task.name}' has no score that is better when higher.", fix="leave out --min-score")


def _check_complete(samples: Sequence[Sample], records: dict[int, Record], limits: Limits) -> None:
    missing = [sample.id for row, sample in enumerate(samples) if row not in records]
    if missing and (not limits.allow_partial or not records):
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise DataError(
            f"{len(missing)} of {len(samples)} rows have no prediction: {shown}.",
            fix="add them, or give --allow-partial to score the others",
        )
    failed = [record for record in records.values() if "error" in record]
    if records and len(failed) == len(records):
        first = failed[0]["error"]
        message = first.get("message", first) if isinstance(first, dict) else first
        raise DataError(f"All {len(failed)} rows failed; the first: {message}", fix="mend the rows")


def _check_score(task: Benchmark, scored: Scores, limits: Limits, result: dict[str, Any]) -> None:
    if limits.min_score is None or task.primary is None:
        return
    value = float(scored.scores[task.primary])
    if not value >= limits.min_score:
        error = ScoreError(
            f"{task.primary} is {value:.4f}, at least {limits.min_score:.4f} was asked for.",
            where=task.name,
            fix="train longer or on more data, or lower --min-score",
        )
        error.result = result
        raise error


def _samples(
    data: str | Path | Sequence[Sample], media_root: Sequence[str | Path], limit: int | None
) -> tuple[Any, str]:
    if isinstance(data, str | Path):
        table: Sequence[Sample] = load_samples(data, media_root=tuple(media_root))
        sha = data_sha256(Path(data))
    else:
        table = data
        sha = hashlib.sha256("\n".join(repr(sample) for sample in data).encode()).hexdigest()
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}.", where="--limit", fix="give 1 or more")
    count = len(table) if limit is None else min(limit, len(table))
    samples = [table[index] for index in range(count)]
    if not samples:
        raise DataError(
            "No rows.", where=str(data) if isinstance(data, str | Path) else None, fix="give a file with rows"
        )
    return samples, sha


def _key(task: Benchmark, sha: str, fingerprint: str, decoding: Decoding) -> str:
    parts = {"benchmark": task.name, "data": sha, "model": fingerprint, "decoding": asdict(decoding)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _result(task: Benchmark, scored: Scores, records: dict[int, Record], *, missing: int) -> dict[str, Any]:
    return {
        "benchmark": task.name,
        "scorer": task.scorer,
        "rule": task.rule,
        "scores": dict(scored.scores),
        "n": len(records),
        "missing": missing,
        "uninferred": scored.uninferred,
        "failed": sum("error" in record for record in records.values()),
        "confidence": dict(scored.confidence),
        **scored.top_level,
    }


def _make_folder(output: str | Path | None) -> Path | None:
    if output is None:
        return None
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"Cannot make the output folder: {error}", where=str(folder), fix="choose --output"
        ) from error
    return folder


def _write(folder: Path, result: dict[str, Any], scored: Scores) -> None:
    try:
        with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
            for item in scored.items:
                file.write(json.dumps(item, ensure_ascii=False) + "\n")
        text = json.dumps(result, indent=2, ensure_ascii=False)
        (folder / "scores.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"Cannot write the scores: {error}", where=str(folder), fix="free space") from error
