"""What ``mmtune generate`` does once its options are known."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.cli.console import Console, Result, plain
from mmtune.cli.display import progress_display
from mmtune.cli.models import load_for
from mmtune.cli.requests import (
    DEFAULT_PROMPT,
    Reading,
    batch_rows,
    check_files,
    message_sample,
    prompt_sample,
    read_json,
    row_sample,
)
from mmtune.cli.tables import duration
from mmtune.core.errors import DataError, MMTuneError, UsageError
from mmtune.data.sample import Sample


@dataclass(frozen=True)
class Request:
    """Model, prompt and media as the options gave them."""

    model: str | None
    prompt: str | None
    messages: Path | None
    media: Mapping[str, Sequence[str | bytes]]
    device: str
    dtype: str


def answer_one(console: Console, request: Request, options: Mapping[str, Any], *, stream: bool) -> Result:
    """Answer one prompt; on a terminal the text appears as it is produced."""
    for name, items in request.media.items():
        check_files(f"--{name}", items)
    body = read_json(request.messages, "--messages") if request.messages else None
    if body is not None and (request.prompt is not None or any(request.media.values())):
        fix = "put text and media into the message file"
        raise UsageError("--messages comes with its own text and media.", where="--messages", fix=fix)
    if body is None and request.prompt is None and not any(request.media.values()):
        raise UsageError("There is nothing to ask about.", fix='mmtune generate --image F, or --prompt "…"')
    from mmtune.model.generation import Decoding, answer

    decoding = Decoding(**options)
    model, processor, name = load_for(console, request.model, device=request.device, dtype=request.dtype)
    sample = _sample(request, body, Reading.of(processor, decoding.template))
    streamed = stream and console.streams_text
    began = time.perf_counter()
    found = answer(model, processor, [sample], decoding, batch_size=1, on_token=console.write if streamed else None)[0]
    seconds = time.perf_counter() - began
    values = {key: value for key, value in found.to_json().items() if key != "id"}
    values |= {"seconds": seconds, "tokens_per_second": found.new_tokens / max(seconds, 1e-9), "model": name}
    return Result(values, "" if streamed else found.text)


def _sample(request: Request, body: Any, reading: Reading) -> Sample:
    if body is not None and request.messages is not None:
        return message_sample(body, reading, where=str(request.messages), folder=request.messages.parent)
    return prompt_sample(request.prompt if request.prompt is not None else DEFAULT_PROMPT, request.media, reading)


def answer_batch(
    console: Console, request: Request, options: Mapping[str, Any], batch: Path, output: Path, batch_size: int
) -> Result:
    """Answer the rows of a file; each gets one line of the output, failed ones their error, in input order."""
    rows = list(batch_rows(batch))
    if not rows:
        raise DataError("The file has no rows.", where=str(batch), fix='write {"id": "1", "prompt": "…"} a line')
    partial = output.with_name(output.name + ".part")
    from mmtune.train.files import write_text, writing

    with writing(partial):  # notice a place that cannot be written to before the work
        partial.write_text("", encoding="utf-8")
    from mmtune.model.generation import Answer, Decoding, answers, failed

    decoding = Decoding(**options)
    model, processor, name = load_for(console, request.model, device=request.device, dtype=request.dtype)
    found: list[Answer | None] = [None] * len(rows)
    samples, places = [], []
    reading = Reading.of(processor, decoding.template)
    for place, (row_id, where, row) in enumerate(rows):
        try:
            if isinstance(row, DataError):
                raise row
            samples.append(row_sample(row, reading, id=row_id, where=where, folder=batch.parent))
            places.append(place)
        except MMTuneError as error:
            found[place] = failed(row_id, error)
    began = time.perf_counter()
    lines = {place: _line(given, name) for place, given in enumerate(found) if given is not None}
    try:
        with progress_display(console, "answer") as progress, partial.open("a", encoding="utf-8") as file:
            file.writelines(lines.values())
            for index, given in answers(model, processor, samples, decoding, batch_size=batch_size, on_error="record"):
                place = places[index]
                found[place], lines[place] = given, _line(given, name)
                file.write(lines[place])  # in the order of work: what an interruption leaves behind
                file.flush()
                progress(len(lines), len(found))
    except KeyboardInterrupt:
        console.note(f"{len(lines)} answers were ready; they are in {partial}.")
        raise
    write_text(output, "".join(lines[place] for place in sorted(lines)))
    partial.unlink()
    return _batch_result([one for one in found if one is not None], str(output), name, time.perf_counter() - began)


def _line(given: Any, model: str) -> str:
    return json.dumps(plain(given.to_json() | {"seconds": given.seconds, "model": model})) + "\n"


def _batch_result(done: Sequence[Any], output: str, model: str, seconds: float) -> Result:
    errors = [one for one in done if one.error is not None]
    if len(errors) == len(done):
        message = f"All {len(done)} rows failed; the first: {errors[0].error['message']}"
        raise DataError(message, where=errors[0].error.get("where"), fix=f"mend the rows; {output} lists every error")
    tokens = sum(one.new_tokens for one in done)
    values = {
        "output": output, "rows": len(done), "answered": len(done) - len(errors), "failed": len(errors),
        "errors": [{"id": one.id, **one.error} for one in errors[:20]], "new_tokens": tokens, "seconds": seconds,
        "tokens_per_second": tokens / max(seconds, 1e-9), "model": model,
    }  # fmt: skip
    text = f"{values['answered']} of {len(done)} rows answered in {duration(seconds)}: {output}"
    return Result(values, text)
