"""``mmtune prepare-data``: from data of any kind to checked, packed training data."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from mmtune.cli.console import Result
from mmtune.cli.display import progress_display
from mmtune.cli.models import choose_model
from mmtune.cli.options import MEDIA_ROOT, OUTPUT, OVERWRITE, POSITIVE, one_of, shard_of
from mmtune.cli.tables import duration


def run(
    context: typer.Context,
    source: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Files, folders, hub ids; or all slices.")],
    output: OUTPUT,
    format_: Annotated[str, typer.Option("--format", metavar="FORMAT", help="auto, or a format's name.")] = "auto",
    media_root: MEDIA_ROOT = None,
    max_samples: Annotated[int | None, typer.Option(**POSITIVE, help="Keep this many rows, drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of drawing and splitting.")] = 0,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="A slice of the rows, 1/4 to 4/4.")] = None,
    check_media: Annotated[str, typer.Option(metavar="none|stat|decode", help="How media are checked.")] = "stat",
    embed_media: Annotated[bool, typer.Option("--embed-media", help="Put the media into the prepared files.")] = False,
    max_bad_fraction: Annotated[float, typer.Option(metavar="F", min=0, max=1, help="Bad rows to put up with.")] = 0.0,
    split: Annotated[str | None, typer.Option(metavar="NAME=F,...", help="For example train=0.98,val=0.02.")] = None,
    model: Annotated[str | None, typer.Option(metavar="DIR|ID", help="Also measure rows with its processor.")] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", min=0, help="Processes. [default: one a core]")] = None,
    weight: Annotated[
        list[float] | None, typer.Option(metavar="F", help="How often a source's rows are used; one a SOURCE.")
    ] = None,
    reject: Annotated[
        list[str] | None, typer.Option(metavar="WARNING", help="Leave rows with this warning out; repeatable.")
    ] = None,
    near_duplicates: Annotated[
        str | None,
        typer.Option(metavar="rows|texts|pictures", help="Look for rows nearly like an earlier one (extra dedup)."),
    ] = None,
    download: Annotated[
        str | None, typer.Option(metavar="DIR", help="Fetch pictures of URLs into DIR first (extra download).")
    ] = None,
    distributor: Annotated[
        str, typer.Option(metavar="NAME", help="multiprocessing, pyspark, ray.")
    ] = "multiprocessing",
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Keep rows whose media are URLs.")] = False,
    overwrite: OVERWRITE = False,
    allow_outside: Annotated[bool, typer.Option("--allow-outside", help="Let rows leave the media roots.")] = False,
) -> Result:
    """Check data, reject bad rows with reasons, and pack the rest for training.

    Reads LLaVA and ShareGPT json, OpenAI messages, Alpaca, CSV/TSV/parquet captions, CapsFusion, ScienceQA, LaVIN,
    WebDataset tars, data sets of the hub or saved to disk, and folders of pictures; `--format auto` tells which.
    Rejected rows are listed in rejected.jsonl, oddities in warnings.jsonl. Slices made by --shard on several
    machines are joined by naming all of them: mmtune prepare-data SLICE... --output DIR.
    """
    from mmtune.data.prepare import prepare
    from mmtune.data.signatures import LIKENESSES
    from mmtune.report.data import write_data_report

    with progress_display(context.obj) as progress:
        found = prepare(
            source, output, distributor=one_of("--distributor", distributor, ("multiprocessing", "pyspark", "ray")),
            near_duplicates=near_duplicates and one_of("--near-duplicates", near_duplicates, LIKENESSES), split=split,
            check_media=one_of("--check-media", check_media, ("none", "stat", "decode")), allow_outside=allow_outside,
            workers=os.cpu_count() if workers is None else workers, model=model and choose_model(model, context.obj),
            media_root=tuple(media_root or ()), max_bad_fraction=max_bad_fraction, weights=tuple(weight or ()),
            reject=tuple(reject or ()), max_samples=max_samples, embed_media=embed_media, allow_urls=allow_urls,
            shard=shard_of(shard), overwrite=overwrite, progress=progress, download=download, format=format_, seed=seed,
        )  # fmt: skip
    if shard is not None:
        return Result(found, _slice_summary(found))
    found["report"] = str(write_data_report(found["output"]))
    return Result(found, _summary(found))


def _summary(found: dict[str, Any]) -> str:
    lines = [f"{found['rows']:,} rows in {found['output']}, {found['rejected']:,} rejected"]
    lines += [f"  {number:,} x {reason}" for reason, number in found["reasons"].items()]
    lines += [f"  {number:,} with the warning {code}" for code, number in found["warnings"].items()]
    if "lengths" in found:
        lengths = found["lengths"]
        longest = (lengths.get("positions") or {}).get("max", 0)
        lines.append(
            f"{100 * lengths['trained_fraction']:.1f} % of positions are trained, the longest row has {longest:,}"
        )
    lines.append(f"in {duration(found['seconds'])}, described in {found['report']}")
    if found["left_out_by_weight"]:
        lines.append(f"  {found['left_out_by_weight']:,} left out by --weight")
    if found["splits"].get("train"):
        lines.append(f"try: mmtune finetune --method vlora --data {found['output']}")
    return "\n".join(lines)


def _slice_summary(found: dict[str, Any]) -> str:
    index, count = found["slice"]
    lines = [f"slice {index} of {count}: {found['rows']:,} rows in {found['output']}, {found['rejected']:,} rejected"]
    lines += [f"  {number:,} x {reason}" for reason, number in found["reasons"].items()]
    lines.append("join all slices with: mmtune prepare-data SLICE... --output DIR")
    return "\n".join(lines)
