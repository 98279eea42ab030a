"""``mmtune generate --batch``: a file of prompts to a file of answers, going on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmtune.cli.answering import Request
from mmtune.cli.console import Console, Result, plain
from mmtune.cli.display import progress_display
from mmtune.cli.models import load_for
from mmtune.cli.requests import Reading, batch_rows, row_sample
from mmtune.cli.tables import duration
from mmtune.core.errors import DataError, Interruption, MMTuneError, UsageError


def answer_batch(
    console: Console, request: Request, options: Mapping[str, Any], batch: Path, output: Path, batch_size: int
) -> Result:
    """Answer the rows of a file; each gets one line of the output, failed ones their error, in input order.

    Answers collect in ``OUTPUT.part`` as they come. The same command with the same model, rows and settings reads
    them from there; what they were made with is part of their key, so that nothing else is ever taken for them.
    """
    if output.is_dir() or output.resolve() == batch.resolve():
        message = (
            f"The answers need a file of their own: '{output}' is {'a folder' if output.is_dir() else 'the input'}."
        )
        raise UsageError(message, where="--output", fix="--output ANSWERS.jsonl")
    rows = list(batch_rows(batch))
    if not rows:
        raise DataError("The file has no rows.", where=str(batch), fix='write {"id": "1", "prompt": "…"} a line')
    partial = output.with_name(output.name + ".part")
    from mmtune.train.files import write_text, writing

    with writing(partial):  # notice a place that cannot be written to before the work
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    from mmtune.evaluation.fingerprint import data_sha256, model_fingerprint
    from mmtune.evaluation.predictions import PredictionLog
    from mmtune.model.generation import Decoding, answers, failed

    decoding = Decoding(**options)
    model, processor, name = load_for(console, request.model, device=request.device, dtype=request.dtype)
    made_with = [model_fingerprint(model), data_sha256(batch), processor.template, asdict(decoding)]
    log = PredictionLog(partial, hashlib.sha256(json.dumps(made_with).encode()).hexdigest())
    found = log.read()
    if found:
        console.note(f"{len(found)} of {len(rows)} answers are there from before: {partial}")
    reading, lookup = Reading.of(processor, decoding.template), request.lookup(batch)
    samples, places = [], []
    for place, (row_id, where, row) in enumerate(rows):
        if place in found:
            continue
        try:
            if isinstance(row, DataError):
                raise row
            samples.append(row_sample(row, reading, id=str(row_id), where=where, lookup=lookup))
            places.append(place)
        except MMTuneError as error:
            found[place] = _record(failed(str(row_id), error), name)
    began = time.perf_counter()
    try:
        with progress_display(console, "answer") as progress:
            for index, given in answers(model, processor, samples, decoding, batch_size=batch_size, on_error="record"):
                found[places[index]] = _record(given, name)
                log.append(places[index], samples[index], found[places[index]])
                progress(len(found), len(rows))
    except (KeyboardInterrupt, Interruption):
        console.note(f"{len(found)} of {len(rows)} answers are in {partial}.")
        raise
    done = [{"id": row_id, **found[place]} for place, (row_id, _, _) in enumerate(rows)]
    write_text(output, "".join(json.dumps(one) + "\n" for one in done))
    partial.unlink()
    return _result(done, str(output), name, time.perf_counter() - began)


def _record(given: Any, model: str) -> dict[str, Any]:
    record: dict[str, Any] = plain(given.to_json() | {"seconds": given.seconds, "model": model})
    record.pop("id")
    return record


def _result(done: Sequence[Mapping[str, Any]], output: str, model: str, seconds: float) -> Result:
    errors = [one for one in done if "error" in one]
    if len(errors) == len(done):
        first = errors[0]["error"]
        message = f"All {len(done)} rows failed; the first: {first['message']}"
        raise DataError(message, where=first.get("where"), fix=f"mend the rows; {output} lists every error")
    tokens = sum(one["new_tokens"] for one in done)
    values = {
        "output": output, "rows": len(done), "answered": len(done) - len(errors), "failed": len(errors),
        "errors": [{"id": one["id"], **one["error"]} for one in errors[:20]], "new_tokens": tokens, "seconds": seconds,
        "tokens_per_second": tokens / max(seconds, 1e-9), "model": model,
    }  # fmt: skip
    text = f"{values['answered']} of {len(done)} rows answered in {duration(seconds)}: {output}"
    return Result(values, text)
