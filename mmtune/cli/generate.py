"""``mmtune generate``: one answer, or a file of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmtune.cli.console import Console, Result
from mmtune.cli.options import DEVICE, DTYPE, MEDIA_ROOT, MODEL, POSITIVE, one_of, readable, template_of
from mmtune.cli.requests import read_stdin
from mmtune.core.errors import UsageError

Files = list[str] | None


def run(
    context: typer.Context,
    model: MODEL = None,
    image: Annotated[Files, typer.Option(metavar="F", help="Picture; - reads stdin; repeatable.")] = None,
    audio: Annotated[Files, typer.Option(metavar="F", help="Sound; repeatable.")] = None,
    video: Annotated[Files, typer.Option(metavar="F", help="Video; repeatable.")] = None,
    document: Annotated[Files, typer.Option(metavar="F", help="Text document; repeatable.")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="[default: What is in this picture?]")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="In place of the template's system text.")] = None,
    messages: Annotated[Path | None, typer.Option(metavar="F.json", help="A conversation.")] = None,
    batch: Annotated[Path | None, typer.Option(metavar="F.jsonl", help="Many prompts; needs --output.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="F.jsonl", help="Answers to --batch.")] = None,
    media_root: MEDIA_ROOT = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Let paths in message files and rows lead anywhere.")
    ] = False,
    batch_size: Annotated[int, typer.Option(**POSITIVE, help="Prompts at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(**POSITIVE, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(metavar="F", help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(metavar="F", help="Share of probability to draw from.")] = 1.0,
    num_beams: Annotated[int, typer.Option(**POSITIVE, help="Width of beam search.")] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before it; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of drawing.")] = 0,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Also give each token's log-probability.")] = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Show the answer at the end only.")] = False,
    template: Annotated[str | None, typer.Option(metavar="NAME|raw", help="Prompt format.")] = None,
    positions: Annotated[str, typer.Option(metavar="training|original", help="Numbering of new tokens.")] = "training",
    device: DEVICE = "auto",
    dtype: DTYPE = "auto",
) -> Result:
    """Ask a model about pictures, sounds, videos or documents, or go on with a conversation.

    Without --model this takes the newest finished run under runs/, else the bundled nano model.
    """
    from mmtune.cli.answering import Request, answer_one
    from mmtune.cli.batch import answer_batch

    console: Console = context.obj
    media = {"image": image or [], "audio": audio or [], "video": video or [], "document": document or []}
    read = {name: read_stdin(f"--{name}", items) for name, items in media.items()}
    request = Request(model, prompt, messages, read, device, dtype, tuple(media_root or ()), allow_outside)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "num_beams": num_beams,
        "stop": tuple(readable("--stop", text) for text in stop or ()), "system": readable("--system", system),
        "seed": seed, "logprobs": logprobs, "template": template_of(template),
        "positions": one_of("--positions", positions, ("training", "original")),
    }  # fmt: skip
    if batch is None:
        if output is not None:
            raise UsageError("--output belongs to --batch.", where="--output", fix="add --batch F.jsonl, or use > FILE")
        return answer_one(console, request, options, stream=not no_stream and num_beams == 1)
    if output is None or any(media.values()) or prompt is not None or messages is not None:
        message = "--batch needs --output and takes prompts and media from its rows."
        raise UsageError(message, where="--batch", fix="mmtune generate --batch F.jsonl --output ANSWERS.jsonl")
    return answer_batch(console, request, options, batch, output, batch_size)
