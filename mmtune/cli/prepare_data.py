"""``mmtune prepare-data``: from data files to checked, packed training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmtune.cli.console import Result
from mmtune.cli.display import progress_display
from mmtune.cli.options import MEDIA_ROOT, OUTPUT, OVERWRITE, POSITIVE, one_of, shard_of
from mmtune.cli.tables import duration


def run(
    context: typer.Context,
    source: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Data files, in any known format.")],
    output: OUTPUT,
    format_: Annotated[str, typer.Option("--format", metavar="FORMAT", help="auto, llava, messages.")] = "auto",
    media_root: MEDIA_ROOT = None,
    max_samples: Annotated[int | None, typer.Option(**POSITIVE, help="Keep this many rows, drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of drawing and splitting.")] = 0,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only this part of the rows: 1/4 to 4/4.")] = None,
    check_media: Annotated[str, typer.Option(metavar="none|stat|decode", help="How media are checked.")] = "stat",
    embed_media: Annotated[bool, typer.Option("--embed-media", help="Put the media into the prepared files.")] = False,
    max_bad_fraction: Annotated[float, typer.Option(metavar="F", min=0, max=1, help="Bad rows to put up with.")] = 0.0,
    split: Annotated[str | None, typer.Option(metavar="NAME=F,...", help="For example train=0.98,val=0.02.")] = None,
    model: Annotated[str | None, typer.Option(metavar="DIR|ID", help="Also count tokens with its processor.")] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", min=0, help="Processes that check media.")] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Keep rows whose media are URLs.")] = False,
    overwrite: OVERWRITE = False,
    allow_outside: Annotated[bool, typer.Option("--allow-outside", help="Let rows leave the media roots.")] = False,
) -> Result:
    """Check data, reject bad rows with reasons, and pack the rest for training.

    Formats: LLaVA json, messages jsonl. Rejected rows are listed in rejected.jsonl.
    """
    from mmtune.data.prepare import prepare
    from mmtune.report.data import write_data_report

    with progress_display(context.obj) as progress:
        found = prepare(
            source, output, format=format_, media_root=tuple(media_root or ()), max_samples=max_samples, seed=seed,
            check_media=one_of("--check-media", check_media, ("none", "stat", "decode")), embed_media=embed_media,
            max_bad_fraction=max_bad_fraction, split=split, model=model, allow_urls=allow_urls,
            allow_outside=allow_outside, progress=progress,
            shard=shard_of(shard), workers=workers, overwrite=overwrite,
        )  # fmt: skip
    found["report"] = str(write_data_report(found["output"]))
    return Result(found, _summary(found, output))


def _summary(found: dict[str, Any], output: Path) -> str:
    lines = [f"{found.get('rows', 0):,} rows in {found.get('output', output)}, {found.get('rejected', 0):,} rejected"]
    lines += [f"  {number:,} x {reason}" for reason, number in (found.get("reasons") or {}).items()]
    lines.append(f"in {duration(found.get('seconds') or 0)}, described in {found.get('report')}")
    lines.append(f"try: mmtune finetune --method vlora --data {found.get('output', output)}")
    return "\n".join(lines)
