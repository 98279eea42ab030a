"""``prepare-data``: data files in, checked rows in parquet shards out, with a list of everything left out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtune.core.errors import ResourceError, UsageError
from mmtune.data.drawing import draw, parse_split
from mmtune.data.intake import Source, take_in
from mmtune.data.lengths import Lengths
from mmtune.data.locate import data_files
from mmtune.data.media import CheckMedia, MediaLookup
from mmtune.data.packing import PackingJob, Progress

__all__ = ["prepare"]


def prepare(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    format: str = "auto",
    media_root: Sequence[str | Path] = (),
    max_samples: int | None = None,
    seed: int = 0,
    shard: tuple[int, int] | None = None,
    check_media: CheckMedia = "stat",
    embed_media: bool = False,
    max_bad_fraction: float = 0.0,
    split: str | None = None,
    model: str | None = None,
    workers: int | None = None,
    allow_urls: bool = False,
    allow_outside: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Check data files and write the good rows as shards; equal input gives equal bytes.

    Args:
        sources: JSON lists, JSON Lines files, or folders of them.
        output: Folder to write; it appears only when everything is done.
        format: Name of a data format, or ``auto`` to tell it from the first row.
        media_root: Folders that media are looked up in besides the data file's own.
        max_samples: Read only so many rows, drawn by the seed.
        seed: Of drawing and splitting.
        shard: ``(i, n)`` reads only rows i, i + n, i + 2n, … (counted from 1).
        check_media: ``none``, ``stat`` (there, a file, not empty) or ``decode``.
        embed_media: Put the files of media into the shards.
        max_bad_fraction: Share of rows that may be rejected.
        split: For example ``train=0.98,val=0.02``; by the hash of the id.
        model: A checkpoint whose processor counts tokens; adds ``lengths`` to the result.
        workers: Threads that check media, several for ``decode`` by default; the result does not depend on it.
        overwrite: Replace an existing output.
        progress: Called now and then with rows done and their total if known.

    Returns:
        The result of ``mmtune prepare-data``.

    Raises:
        DataError: Broken or missing files, or more bad rows than allowed; these are then listed beside the output.
        UsageError: Settings that cannot be, or an output that exists.
        ResourceError: The output cannot be written.
    """
    began, target = time.monotonic(), Path(output)
    if not 0.0 <= max_bad_fraction <= 1.0:
        raise UsageError(f"A fraction of {max_bad_fraction:g} cannot be.", where="--max-bad-fraction", fix="use 0 to 1")
    _refuse_existing(target, overwrite)
    job = PackingJob(parse_split(split), seed, embed_media, max_bad_fraction, Lengths.of(model), progress)
    rules = {"allow_outside": allow_outside, "allow_urls": allow_urls, "look": check_media != "none"}
    files = [file for name in sources for file in data_files(Path(name))]
    opened = [Source.open(file, format, MediaLookup(file.parent, media_root, **rules)) for file in files]
    threads = _threads(check_media) if workers is None else workers
    rows = take_in(opened, check_media, workers=threads, keep=_chosen(opened, max_samples, seed, shard))
    with _whole(target) as working:
        manifest = job.run(rows, working, target, opened)
    return _result(manifest, target, time.monotonic() - began)


def _threads(check: CheckMedia) -> int:
    return min(8, os.cpu_count() or 1) if check == "decode" else 0


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``target`` when all went well, and is removed otherwise."""
    working = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        working.mkdir(parents=True)
        yield working
        if target.exists():
            shutil.rmtree(target)
        os.replace(working, target)
    except OSError as error:
        raise ResourceError(
            f"The prepared data cannot be written: {error.strerror or error}.",
            where=str(error.filename or target),
            fix="check free space and permissions, or choose another --output",
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _chosen(
    sources: Sequence[Source], max_samples: int | None, seed: int, shard: tuple[int, int] | None
) -> Callable[[int], bool] | None:
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise UsageError(f"There is no part {shard[0]} of {shard[1]}.", where="--shard", fix="use for example 1/4")
    drawn: set[int] | None = None
    if max_samples is not None:
        if max_samples < 1:
            raise UsageError(f"{max_samples} rows cannot be drawn.", where="--max-samples", fix="use 1 or more")
        total = sum(1 for source in sources for _ in source.rows())
        drawn = draw(total, max_samples, seed) if max_samples < total else None
    if drawn is None and shard is None:
        return None

    def keep(number: int) -> bool:
        return (drawn is None or number in drawn) and (shard is None or number % shard[1] == shard[0] - 1)

    return keep


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if not target.exists() or overwrite:
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    raise UsageError(f"The output exists: {target}", where="--output", fix="choose another folder, or remove this one")


def _result(manifest: Mapping[str, Any], target: Path, seconds: float) -> dict[str, Any]:
    keys = ("rows", "rejected", "reasons", "media", "fingerprint", "media_rules", "leading_answers", "lengths")
    found = {key: manifest[key] for key in keys if key in manifest}
    rows = {name: part["rows"] for name, part in manifest["splits"].items()}
    return {"output": str(target), **found, "splits": rows, "seconds": round(seconds, 3)}
