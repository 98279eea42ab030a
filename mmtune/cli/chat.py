"""``mmtune chat``: talk with a model about pictures in the terminal."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmtune.cli.console import Console, Result
from mmtune.cli.options import DEVICE, DTYPE, MODEL, POSITIVE, template_of


def run(
    context: typer.Context,
    model: MODEL = None,
    image: Annotated[list[str] | None, typer.Option(metavar="F", help="Picture to begin with; repeatable.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="In place of the template's system text.")] = None,
    max_new_tokens: Annotated[int, typer.Option(**POSITIVE, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(metavar="F", help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(metavar="F", help="Share of probability to draw from.")] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of drawing.")] = 0,
    template: Annotated[str | None, typer.Option(metavar="NAME", help="Prompt format.")] = None,
    device: DEVICE = "auto",
    dtype: DTYPE = "auto",
) -> Result:
    """Talk with a model: type a question, or /help for the commands. Ctrl-C stops an answer, Ctrl-D leaves.

    Lines come from standard input, so that a script can talk too. Without --model this takes the newest finished run
    under runs/, else the bundled nano model.
    """
    from mmtune.cli.conversation import Conversation, talk
    from mmtune.cli.models import load_for
    from mmtune.cli.requests import check_files

    console: Console = context.obj
    check_files("--image", image or [])
    from mmtune.model.generation import Decoding

    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed, "system": system}
    decoding = Decoding(max_new_tokens=max_new_tokens, template=template_of(template), **options)
    loaded, processor, name = load_for(console, model, device=device, dtype=dtype)
    conversation = Conversation(loaded, processor, decoding)
    for path in image or []:
        conversation.show("image", path)
    talk(console, conversation)
    return Result({"model": name, "messages": conversation.messages(), "looks": conversation.seen.looks}, None)
