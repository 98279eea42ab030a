"""The answers of an evaluation: those of an earlier, interrupted run first, then the model's."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Benchmark, Record
from mmtune.evaluation.predictions import PredictionLog, prompt_hash
from mmtune.evaluation.reading.pictures import MissingPicture

if TYPE_CHECKING:
    from mmtune.model.decoding import Decoding

Progress = Callable[[int, int], None]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """How the model is asked.

    Args:
        folder: Where answers are kept as they come; None keeps none.
        key: Names data, model, decoding and prompts; only answers under it are taken over.
        max_failures: More failed rows than this stop the run.
        shard: This process's number, and n, the number of processes, each of which asks every n-th row.
    """

    decoding: Decoding
    batch_size: int
    max_failures: int | None
    folder: Path | None
    key: str
    progress: Progress | None
    shard: tuple[int, int] = (0, 1)


def evaluation_key(task: Benchmark, data: str, fingerprint: str, decoding: Decoding) -> str:
    """A short name for everything that answers depend on besides the single row."""
    parts = {"benchmark": task.name, "data": data, "model": fingerprint, "decoding": asdict(decoding)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def collect(task: Benchmark, model: Any, processor: Any, samples: Sequence[Sample], job: Job) -> dict[int, Record]:
    """The record of every row that is this process's, and of those that others have answered.

    Raises:
        DataError: More rows failed than are allowed.
    """
    log = _log(samples, job)
    records = {row: record for row, record in (log.read() if log else {}).items() if row < len(samples)}
    if records:
        _LOG.info("%d of %d rows were answered before; going on with the rest", len(records), len(samples))
    rank, size = job.shard
    todo = [row for row in range(len(samples)) if row not in records and row % size == rank]
    failures = 0
    for row, record in _ask(task, model, processor, samples, todo, job):
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


def _log(samples: Sequence[Sample], job: Job) -> PredictionLog | None:
    if job.folder is None:
        return None
    rank, size = job.shard
    name = "predictions.jsonl" if size == 1 else f"predictions.{rank}.jsonl"
    return PredictionLog(job.folder / name, job.key, [prompt_hash(sample) for sample in samples])


def _ask(
    task: Benchmark, model: Any, processor: Any, samples: Sequence[Sample], todo: Sequence[int], job: Job
) -> Iterator[tuple[int, Record]]:
    """Rows and records as they come: at once for rows whose media are missing, from the model for all others."""
    whole = []
    for row in todo:
        missing = [item.uri for item in samples[row].media if isinstance(item.uri, MissingPicture)]
        if missing:
            yield row, {"error": missing[0].problem.to_json()}
        else:
            whole.append(row)
    asked = [samples[row] for row in whole]
    for index, record in task.run(model, processor, asked, decoding=job.decoding, batch_size=job.batch_size):
        yield whole[index], record


def _check_failures(failures: int, record: Record, sample: Sample, job: Job) -> None:
    if job.max_failures is not None and failures > job.max_failures:
        raise DataError(
            f"{failures} rows failed, {job.max_failures} are allowed; the last: {record['error']['message']}",
            where=sample.source or sample.id,
            fix="mend the rows, or raise --max-failures; answered rows are kept when an output is given",
        )
