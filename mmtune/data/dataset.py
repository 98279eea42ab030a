"""Samples by index, from prepared folders and raw files alike; media are opened by whoever uses the sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError
from mmtune.data.cache import prepared
from mmtune.data.locate import data_names, is_whole, split_files
from mmtune.data.media import CheckMedia, MediaLookup
from mmtune.data.packing import MANIFEST, SCHEMA_NAME, read_rejected
from mmtune.data.shards import OPEN_FILES, ShardReader
from mmtune.data.slices import SLICE
from mmtune.data.tables import FirstRows, JoinedRows, PackedRows, Places, Rows, SampleTable

__all__ = ["SampleTable", "load_samples", "read_manifest"]
_JSON = (".json", ".jsonl")
_IN_MEMORY_BYTES = 64 << 20  # compressed; smaller raw data is read once instead of group by group


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
    open_files: int


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
    open_files: int = OPEN_FILES,
) -> SampleTable:
    """Open data for training or evaluation.

    Args:
        paths: A folder that ``prepare-data`` wrote, or any source that it reads, which is then prepared into the
            cache; in a folder, ``train`` and ``val`` are splits. Several are joined.
        media_root: Folders that media are looked up in besides the data file's own and the working directory.
        cache: Folder for raw data that is prepared on the fly and for media that are fetched from URLs; the
            user's own cache by default.
        split: ``train``, ``validation`` or None for all rows. A raw file is all ``train``.
        limit: Take only the first rows.
        check_media: How the media of raw files are checked before the first row is used.
        max_bad_fraction: Share of a raw file's rows that may be rejected; they are in ``rejected``.
        open_files: Shards that are kept open; 1 takes the least memory where rows are read in order.

    Raises:
        DataError: No such data, no such split, or more bad rows than allowed, with the first reasons.
    """
    chosen = [paths] if isinstance(paths, str | Path) else list(paths)
    options = _Options(
        tuple(media_root), str(cache) if cache else None, _split_name(split), limit, format, check_media,
        max_bad_fraction, allow_urls, allow_outside, workers, open_files,
    )  # fmt: skip
    tables = [_open(path, options) for path in chosen]
    return tables[0] if len(tables) == 1 else _joined(tables)


def _split_name(split: str | None) -> str | None:
    return {"validation": "val", "valid": "val", "dev": "val"}.get(split or "", split)


def _open(path: str | Path, options: _Options) -> SampleTable:
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        return _open_prepared(folder, options)
    files = data_names(folder) if folder.is_dir() and not is_whole(folder) else []
    if files and all(file.suffix in _JSON for file in files):
        return _open_json_folder(folder, options)
    if options.split == "val" and folder.is_file():
        raise DataError("A data file has no validation split.", where=str(path), fix="name a file for validation")
    return _open_raw(path, options)


def _open_json_folder(folder: Path, options: _Options) -> SampleTable:
    """One file, or ``train`` with ``val`` beside it; several others are not taken together unasked."""
    _, validation = split_files(folder)
    if options.split == "val" and validation is None:
        raise DataError("The folder has no val.json.", where=str(folder), fix="name the validation file itself")
    return _open_raw(folder, options if options.split is not None else replace(options, split="train"))


def _open_prepared(folder: Path, options: _Options, *, small: bool = False) -> SampleTable:
    manifest = read_manifest(folder)
    if manifest.get("slice"):
        index, count = manifest["slice"]
        raise DataError(
            f"The folder is slice {index} of {count}; only all of them together can be used.",
            where=str(folder),
            fix="join them: mmtune prepare-data SLICE... --output DIR",
        )
    splits = manifest["splits"]
    names = [options.split] if options.split else list(splits)
    unknown = [name for name in names if name not in splits]
    if unknown:
        raise DataError(
            f"The data has no split '{unknown[0]}'.", where=str(folder), allowed=splits, fix="prepare it with --split"
        )
    table = _read_split(folder, manifest, names, options, small)
    if options.split == "val" or "val" not in splits or not splits["val"]["rows"] or options.split is None:
        return table
    return replace(table, validation=_read_split(folder, manifest, ["val"], replace(options, limit=None), small))


def _read_split(
    folder: Path, manifest: dict[str, Any], names: Sequence[str], options: _Options, small: bool
) -> SampleTable:
    files = [folder / name for split in names for name in manifest["splits"][split]["files"]]
    rows: Rows = ShardReader(files, manifest["media_roots"], open_files=options.open_files)
    if small and sum(file.stat().st_size for file in files) <= _IN_MEMORY_BYTES:
        rows = PackedRows(rows[index] for index in range(len(rows)))
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """What prepared data says of itself.

    Raises:
        DataError: It is damaged, or of another version.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        known = manifest["schema"] in (SCHEMA_NAME, SLICE)
        if known and manifest["schema"] == SCHEMA_NAME:
            _ = [(part["rows"], part["files"]) for part in manifest["splits"].values()], manifest["fingerprint"]
    except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
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


def _open_raw(path: str | Path, options: _Options) -> SampleTable:
    """Prepare a raw source into the cache, or find it there."""
    wishes = {
        "format": options.format,
        "media_root": options.media_root,
        "check_media": options.check_media,
        "max_bad_fraction": options.max_bad_fraction,
        "allow_urls": options.allow_urls,
        "allow_outside": options.allow_outside,
        "workers": options.workers,
    }
    folder = prepared(path, options.cache, wishes)
    split = options.split or ("train" if Path(path).is_file() else None)
    found = _open_prepared(folder, replace(options, split=split), small=True)
    validation = found.validation and replace(found.validation, sources=(str(path),))
    return replace(found, sources=(str(path),), validation=validation, rejected=tuple(read_rejected(folder)))


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
