"""What ``mmtune generate`` does once its options are known."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.cli.console import Console, Result
from mmtune.cli.models import load_for
from mmtune.cli.requests import (
    DEFAULT_PROMPT,
    Reading,
    check_files,
    message_sample,
    prompt_sample,
    read_json,
)
from mmtune.core.errors import UsageError
from mmtune.data.media import MediaLookup
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
    media_root: Sequence[str] = ()
    allow_outside: bool = False

    def lookup(self, file: Path) -> MediaLookup:
        """Where the media that a file names may lie: beside it, under a media root, or in the working directory."""
        return MediaLookup(file.parent, self.media_root, allow_outside=self.allow_outside)


def answer_one(console: Console, request: Request, options: Mapping[str, Any], *, stream: bool) -> Result:
    """Answer one prompt; on a terminal the text appears as it is produced."""
    for name, items in request.media.items():
        check_files(f"--{name}", items)
    body = read_json(request.messages, "--messages") if request.messages else None
    if body is not None and (request.prompt is not None or any(request.media.values())):
        fix = "put text and media into the message file"
        raise UsageError("--messages comes with its own text and media.", where="--messages", fix=fix)
    if body is None and request.prompt is None and not any(request.media.values()):
        fix = 'mmtune generate --image F, or --prompt "…"'
        raise UsageError("There is nothing to ask about.", where="--image", fix=fix)
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
        return message_sample(body, reading, where=str(request.messages), lookup=request.lookup(request.messages))
    return prompt_sample(request.prompt if request.prompt is not None else DEFAULT_PROMPT, request.media, reading)
