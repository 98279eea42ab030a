"""``prepare-data``: sources in, checked rows in parquet shards out, with a list of everything left out."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.core.errors import UsageError
from mmtune.data.drawing import drawn, parse_split
from mmtune.data.intake import Choice, Judge, Source
from mmtune.data.lengths import Lengths
from mmtune.data.locate import locate, slice_of
from mmtune.data.media import CheckMedia, MediaLookup
from mmtune.data.oddities import check_codes
from mmtune.data.packing import MANIFEST, Packing
from mmtune.data.parts import FolderParts, PartMaker
from mmtune.data.signatures import Likeness, Signer
from mmtune.data.slices import join_slices, write_slice
from mmtune.data.working import Progress, make_parts
from mmtune.data.workplace import PARTS, need_space, workplace

__all__ = ["prepare"]


_LOG = logging.getLogger(__name__)
_MOST_COPIES = 1_000_000


@dataclass(frozen=True)
class _Wishes:
    """What was asked for, besides sources and output."""

    format: str = "auto"
    media_root: tuple[str | Path, ...] = ()
    max_samples: int | None = None
    seed: int = 0
    shard: tuple[int, int] | None = None
    check_media: CheckMedia = "stat"
    embed_media: bool = False
    max_bad_fraction: float = 0.0
    split: str | None = None
    model: str | None = None
    allow_urls: bool = False
    allow_outside: bool = False
    reject: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    downloads: str | None = None
    near_duplicates: Likeness | None = None


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
    reject: Sequence[str] = (),
    weights: Sequence[float] = (),
    download: str | Path | None = None,
    distributor: str = "multiprocessing",
    near_duplicates: Likeness | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Check data and write the good rows as shards; equal input gives equal bytes. Returns what the verb's JSON says.

    Killed and called again, it goes on where it was. Slices (``shard``) are joined by naming all of them as sources.

    Args:
        sources: Files, folders and data sets of the hub, in any known form; or all slices of one preparation.
        output: Folder to write; it appears only when everything is done.
        format: Name of a data format, or ``auto`` to tell it from the first row.
        max_samples: Read only so many rows, drawn by the seed.
        shard: ``(i, n)`` reads only rows i, i + n, i + 2n, … (counted from 1) and writes a slice.
        check_media: ``none``, ``stat`` (there, a file, not empty) or ``decode``.
        split: For example ``train=0.98,val=0.02``; rows with the same picture, text or id stay together.
        model: A checkpoint whose processor measures rows; adds ``lengths`` to the result.
        workers: Processes that check rows, none besides this one by default; the result does not depend on it.
        reject: Codes of warnings that rows are rejected for.
        weights: How often the rows of each source are used, one number a source; 1 for all by default.
        download: Folder to fetch the pictures of URLs into first, by img2dataset and its ``distributor``.
        near_duplicates: Look for rows nearly like an earlier one: ``rows``, or only their ``texts`` or ``pictures``.

    Raises:
        DataError: Broken or missing files, or more bad rows than allowed; these are then listed beside the output.
        UsageError: Settings that cannot be, or an output that exists.
        ResourceError: The output cannot be written.
    """
    began, target = time.monotonic(), Path(output)
    _check_output(target, overwrite, sources)
    wishes = _Wishes(
        format, tuple(media_root), max_samples, seed, shard, check_media, embed_media, max_bad_fraction, split, model,
        allow_urls, allow_outside, tuple(sorted(set(reject))), tuple(weights), str(download) if download else None,
        near_duplicates,
    )  # fmt: skip
    if download is not None:
        _download(sources, wishes, Path(download), workers or 1, distributor)
    manifest = _prepare(sources, target, wishes, workers or 0, progress)
    return _result(manifest, target, time.monotonic() - began)


def describe(names: Sequence[str | Path], **options: Any) -> dict[str, Any]:
    """All that the content of prepared data follows from: sources with their hashes, and settings.

    Args:
        options: Of :func:`prepare`; those that change nothing of the content are passed over.
    """
    known = {key: value for key, value in options.items() if key in _Wishes.__dataclass_fields__}
    wishes = _Wishes(**known)
    return _describe(_open(names, wishes), wishes)


def _prepare(
    names: Sequence[str | Path], target: Path, wishes: _Wishes, workers: int, progress: Progress | None
) -> dict[str, Any]:
    if any(slice_of(Path(name)) for name in names):
        return join_slices([Path(name) for name in names], target, wishes.max_bad_fraction, progress)
    if not 0.0 <= wishes.max_bad_fraction <= 1.0:
        message = f"A fraction of {wishes.max_bad_fraction:g} cannot be."
        raise UsageError(message, where="--max-bad-fraction", fix="use 0 to 1")
    check_codes(wishes.reject, near=wishes.near_duplicates is not None)
    signer = Signer(wishes.near_duplicates) if wishes.near_duplicates is not None else None
    fractions = parse_split(wishes.split)
    sources = _open(names, wishes)
    lengths = Lengths.of(wishes.model)
    described = _describe(sources, wishes)
    roots = described["media_roots"]
    judge = Judge(tuple(sources), wishes.check_media, wishes.embed_media, frozenset(wishes.reject), signer)
    with workplace(target, described) as working:
        size = sum(source.path.stat().st_size for source in sources if source.path.is_file())
        need_space(working, 2 * size - FolderParts(working / PARTS).num_bytes())
        maker = PartMaker(judge, working / PARTS, roots, wishes.model)
        choice = _chosen(sources, wishes.max_samples, wishes.seed, wishes.shard)
        parts = make_parts(maker, choice, workers=workers, progress=progress)
        limit = lengths.limit if lengths is not None else None
        packing = Packing(
            described, fractions, wishes.seed, frozenset(wishes.reject), wishes.max_bad_fraction,
            [source.weight for source in sources], lengths is not None, limit, progress,
        )  # fmt: skip
        if wishes.shard is not None:
            return write_slice(packing, parts, working, wishes.shard)
        need_space(working, parts.num_bytes())
        manifest = packing.write(parts, working, target)
        shutil.rmtree(working / PARTS)
        return manifest


def _download(names: Sequence[str | Path], wishes: _Wishes, folder: Path, processes: int, distributor: str) -> None:
    """Fetch the pictures of the chosen rows that are on the web."""
    from mmtune.data.bulk import download, urls_of

    if any(slice_of(Path(name)) for name in names):  # its pictures were fetched when it was made
        return
    sources = _open(names, wishes)
    urls = urls_of(sources, _chosen(sources, wishes.max_samples, wishes.seed, wishes.shard))
    found = download(urls, folder, processes=processes, distributor=distributor)
    _LOG.info("%(fetched)d pictures fetched, %(there)d were there, %(failed)d failed", found)


def _open(names: Sequence[str | Path], wishes: _Wishes) -> list[Source]:
    if wishes.weights and len(wishes.weights) != len(names):
        raise UsageError(
            f"{len(wishes.weights)} weights for {len(names)} sources.", where="--weight", fix="give one for each source"
        )
    wrong = [weight for weight in wishes.weights if not 0.0 < weight <= _MOST_COPIES]
    if wrong:
        message = f"A weight of {wrong[0]:g} cannot be; it must be above 0 and at most {_MOST_COPIES:,}."
        raise UsageError(message, where="--weight", fix="leave out a source instead of giving it no weight")
    rules = {
        "allow_outside": wishes.allow_outside,
        "allow_urls": wishes.allow_urls,
        "look": wishes.check_media != "none",
        "downloads": wishes.downloads,
    }
    opened = []
    for name, weight in zip(names, wishes.weights or [1.0] * len(names), strict=True):
        for place in locate(name):
            folder = place.path if place.path.is_dir() else place.path.parent
            lookup = MediaLookup(Path.cwd() if place.hub else folder, wishes.media_root, **rules)
            options: dict[str, Any] = {"split": place.split, "weight": weight, "hub": place.hub}
            opened.append(Source.open(place.path, wishes.format, lookup, **options))
    return opened


def _describe(sources: Sequence[Source], wishes: _Wishes) -> dict[str, Any]:
    """What the manifest says of sources and settings; everything that the rows follow from is in it."""
    roots: list[str] = []
    for source in sources:
        roots += [root.folder for root in source.lookup.roots if root.folder not in roots]
    return {
        "sources": [
            {"path": str(source.path), "format": source.format, "sha256": source.sha256(), "weight": source.weight}
            for source in sources
        ],
        "media_roots": roots,
        "embedded": wishes.embed_media,
        "seed": wishes.seed,
        "settings": {
            "check_media": wishes.check_media,
            "max_samples": wishes.max_samples,
            "split": wishes.split,
            "model": wishes.model,
            "reject": list(wishes.reject),
            "near_duplicates": wishes.near_duplicates,
            "allow_urls": wishes.allow_urls,
            "allow_outside": wishes.allow_outside,
        },
    }


def _chosen(sources: Sequence[Source], max_samples: int | None, seed: int, shard: tuple[int, int] | None) -> Choice:
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise UsageError(f"There is no part {shard[0]} of {shard[1]}.", where="--shard", fix="use for example 1/4")
    if max_samples is None:
        return Choice(shard=shard)
    if max_samples < 1:
        raise UsageError(f"{max_samples} rows cannot be drawn.", where="--max-samples", fix="use 1 or more")
    counts = [source.count() for source in sources]
    if None in counts:  # nobody knows where a stream ends: its first rows are taken
        return Choice(end=max_samples, shard=shard)
    total = sum(count for count in counts if count is not None)
    return Choice(drawn(total, max_samples, seed) if max_samples < total else None, shard=shard)


def _check_output(target: Path, overwrite: bool, sources: Sequence[str | Path]) -> None:
    if target.name in ("", ".."):  # it is made beside its place, and then put there
        raise UsageError(f"The output needs a name: '{target}' has none.", where="--output", fix="--output prepared")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        known = (target / MANIFEST).is_file()
        fix = "add --overwrite, or choose another folder" if known else "choose another folder"
        raise UsageError(f"The output exists: {target}", where="--output", fix=fix)
    inside = next((source for source in sources if Path(source).resolve().is_relative_to(target.resolve())), None)
    if inside is not None:
        message = f"The source {inside} lies in the output {target}, which --overwrite would remove."
        raise UsageError(message, where="--output", fix="choose another folder")
    if not (target / MANIFEST).is_file():
        message = f"The output {target} holds no prepared data; --overwrite replaces nothing else."
        raise UsageError(message, where="--output", fix="choose another folder, or remove this one")


def _result(manifest: Mapping[str, Any], target: Path, seconds: float) -> dict[str, Any]:
    keys = (
        "rows", "rejected", "reasons", "media", "fingerprint", "media_rules", "leading_answers", "warnings",
        "duplicates", "near_duplicates", "copies", "left_out_by_weight", "rows_by_source", "lengths", "slice",
    )  # fmt: skip
    found = {key: manifest[key] for key in keys if key in manifest}
    rows = {name: part["rows"] for name, part in manifest.get("splits", {}).items()}
    return {"output": str(target), **found, "splits": rows, "seconds": round(seconds, 3)}
