"""``mmtune convert``: published checkpoints into mmtune folders."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmtune.cli.console import Result
from mmtune.cli.display import progress_display
from mmtune.cli.options import OUTPUT, OVERWRITE, SET, pairs, settings
from mmtune.cli.tables import duration

_TO = "Format to write. [default: mmtune; hf for a language model or vision tower alone]"


def run(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Checkpoint: a folder, a file, or a hub id.")],
    output: OUTPUT,
    from_: Annotated[str | None, typer.Option("--from", metavar="FORMAT", help="What it is. [default: seen]")] = None,
    to: Annotated[str | None, typer.Option(metavar="FORMAT", help=_TO)] = None,
    llm: Annotated[str | None, typer.Option(metavar="PATH|ID", help="The language model it belongs to.")] = None,
    vision: Annotated[str | None, typer.Option(metavar="PATH|ID", help="The image encoder it belongs to.")] = None,
    encoder: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="Another encoder; repeatable.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="T", help="Store weights as float32, bfloat16, float16.")] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest weight file.")] = "5GB",
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare with the source.")] = False,
    overwrite: OVERWRITE = False,
    push: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Upload to the hub.")] = None,
    set_: SET = None,
) -> Result:
    """Turn a published checkpoint into an mmtune folder, or into another format, and verify it against its source.

    Local language models and encoders come along; hub ids stay references.
    """
    from mmtune.convert.run import convert

    with progress_display(context.obj, unit="MB") as progress:
        found = convert(
            source, output, from_format=from_, to=to, llm=llm, vision=vision, encoders=pairs("--encoder", encoder),
            dtype=dtype, max_shard_size=max_shard_size, verify=not no_verify, overwrite=overwrite, push=push,
            settings=settings(set_), progress=progress,
        )  # fmt: skip
    return Result(found, _summary(found))


def _summary(found: dict[str, Any]) -> str:
    verified = found.get("verified")
    size = f"{found.get('bytes', 0) / 1e6:,.1f} MB, {found.get('parameters', 0):,} parameters"
    lines = [f"{found.get('from')} -> {found.get('to')}: {found.get('output')}", size]
    if verified:
        answers = "" if verified.get("greedy_equal") is None else ", greedy answers equal"
        same = f"largest difference of a logit {verified.get('max_abs_logit_diff')}{answers}"
        lines.append(f"verified: {verified.get('note') or same}")
    lines += [f"note: {note}" for note in found.get("notes", [])]
    return "\n".join([*lines, f"in {duration(found.get('seconds') or 0)}"])
