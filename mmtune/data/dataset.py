"""Samples by index, from prepared folders and raw files alike; media are opened by whoever uses the sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError
from mmtune.data.intake import Ledger, Rejected, Source, take_in
from mmtune.data.locate import split_files
from mmtune.data.media import CheckMedia, MediaLookup
from mmtune.data.packing import MANIFEST, SCHEMA_NAME
from mmtune.data.sample import Media, Sample, Turn
from mmtune.data.shards import ShardReader
from mmtune.data.tables import FirstRows, JoinedRows, PackedRows, Places, Rows, SampleTable

__all__ = ["SampleTable", "load_samples"]


@dataclass(frozen=True)
class _Options:
    media_root: tuple[str | Path, ...]
    cache: str | None
    split: str | None
    limit: int | None
    format: str
    check_media: CheckMedia
    max_bad_fraction: float
    allow_urls: bool
    allow_outside: bool
    workers: int


def load_samples(
    paths: str | Path | Sequence[str | Path],
    *,
    media_root: Sequence[str | Path] = (),
    cache: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    format: str = "auto",
    check_media: CheckMedia = "stat",
    max_bad_fraction: float = 0.0,
    allow_urls: bool = False,
    allow_outside: bool = False,
    workers: int = 0,
) -> SampleTable:
    """Open data for training or evaluation.

    Args:
        paths: A folder that ``prepare-data`` wrote; a JSON or JSON Lines file in any known format; or a folder with
            ``train.json`` (and ``val.json``), or with a single data file. Several are joined.
        media_root: Folders that media are looked up in besides the data file's own and the working directory.
        cache: Folder for media that are fetched from URLs.
        split: ``train``, ``validation`` or None for all rows. A raw file is all ``train``.
        limit: Take only the first rows.
        check_media: How the media of raw files are checked before the first row is used.
        max_bad_fraction: Share of a raw file's rows that may be rejected; they are in ``rejected``.

    Raises:
        DataError: No such data, no such split, or more bad rows than allowed, with the first reasons.
    """
    chosen = [paths] if isinstance(paths, str | Path) else list(paths)
    options = _Options(
        tuple(media_root), str(cache) if cache else None, _split_name(split), limit, format, check_media,
        max_bad_fraction, allow_urls, allow_outside, workers,
    )  # fmt: skip
    tables = [_open(Path(path), options) for path in chosen]
    return tables[0] if len(tables) == 1 else _joined(tables)


def _split_name(split: str | None) -> str | None:
    return {"validation": "val", "valid": "val", "dev": "val"}.get(split or "", split)


def _open(path: Path, options: _Options) -> SampleTable:
    if (path / MANIFEST).is_file():
        return _open_prepared(path, options)
    if path.is_dir():
        train, validation = split_files(path)
        if options.split == "val":
            if validation is None:
                raise DataError("The folder has no val.json.", where=str(path), fix="name the validation file itself")
            return _open_raw(validation, options)
        table = _open_raw(train, options)
        return replace(table, validation=_open_raw(validation, replace(options, limit=None)) if validation else None)
    if options.split == "val":
        raise DataError("A data file has no validation split.", where=str(path), fix="name a file for validation")
    return _open_raw(path, options)


def _open_prepared(folder: Path, options: _Options) -> SampleTable:
    manifest = _manifest(folder)
    splits = manifest["splits"]
    names = [options.split] if options.split else list(splits)
    unknown = [name for name in names if name not in splits]
    if unknown:
        raise DataError(
            f"The data has no split '{unknown[0]}'.", where=str(folder), allowed=splits, fix="prepare it with --split"
        )
    table = _read_split(folder, manifest, names, options)
    if options.split == "val" or "val" not in splits or not splits["val"]["rows"] or options.split is None:
        return table
    return replace(table, validation=_read_split(folder, manifest, ["val"], replace(options, limit=None)))


def _read_split(folder: Path, manifest: dict[str, Any], names: Sequence[str], options: _Options) -> SampleTable:
    files = [folder / name for split in names for name in manifest["splits"][split]["files"]]
    rows: Rows = ShardReader(files, manifest["media_roots"])
    expected = sum(manifest["splits"][split]["rows"] for split in names)
    if len(rows) != expected:
        raise DataError(
            f"The shards hold {len(rows)} rows, the manifest says {expected}.",
            where=str(folder),
            fix="prepare it again",
        )
    lookup = MediaLookup(folder, options.media_root, allow_outside=options.allow_outside, allow_urls=options.allow_urls)
    name = "+".join(names)
    print_of = f"{manifest['fingerprint']}:{name}"
    if options.limit is not None:
        rows, print_of = FirstRows(rows, options.limit), f"{print_of}:{options.limit}"
    return SampleTable(rows, print_of, (str(folder),), places=Places(lookup, options.cache, options.allow_urls))


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        known = manifest["schema"] == SCHEMA_NAME
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"The manifest cannot be read: {error}", where=str(folder / MANIFEST), fix="prepare the data again"
        ) from error
    if not known:
        raise DataError(
            f"The data has the form '{manifest['schema']}', not '{SCHEMA_NAME}'.",
            where=str(folder),
            fix="prepare it with this version",
        )
    return manifest


def _open_raw(path: Path, options: _Options) -> SampleTable:
    if not path.is_file():
        raise DataError(f"No such file or folder: {path}", where=str(path), fix="check the path")
    lookup = MediaLookup(
        path.parent,
        options.media_root,
        allow_outside=options.allow_outside,
        allow_urls=options.allow_urls,
        look=options.check_media != "none",
    )
    source = Source.open(path, options.format, lookup)
    ledger, rejected = Ledger(), []

    def samples() -> Iterator[Sample]:
        for row in take_in([source], options.check_media, workers=options.workers):
            ledger.add(row)
            if isinstance(row, Rejected):
                rejected.append(row)
            else:
                yield _with_paths(row.sample, [found.path for found in row.found])

    rows = PackedRows(samples(), options.limit)
    ledger.check_budget(options.max_bad_fraction)
    print_of = source.sha256() + (f":{options.limit}" if options.limit is not None else "")
    places = Places(None, options.cache, options.allow_urls)
    return SampleTable(rows, print_of, (str(path),), rejected=tuple(rejected), places=places)


def _with_paths(sample: Sample, paths: Sequence[str]) -> Sample:
    """The sample with each medium's path as it was found."""
    if not paths:
        return sample
    left = iter(paths)
    turns = tuple(
        Turn(
            turn.role,
            tuple(Media(part.modality, next(left)) if isinstance(part, Media) else part for part in turn.parts),
        )
        for turn in sample.turns
    )
    return replace(sample, turns=turns)


def _joined(tables: Sequence[SampleTable]) -> SampleTable:
    validations = [table.validation for table in tables if table.validation is not None]
    digest = hashlib.sha256("\n".join(table.fingerprint for table in tables).encode()).hexdigest()
    return SampleTable(
        JoinedRows(tuple(tables)),
        digest,
        tuple(source for table in tables for source in table.sources),
        _joined(validations) if len(validations) > 1 else next(iter(validations), None),
        tuple(row for table in tables for row in table.rejected),
    )
