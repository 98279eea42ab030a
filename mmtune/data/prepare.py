"""``prepare-data``: data files in, checked rows in parquet shards out, with a list of everything left out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmtune
from mmtune.core.errors import DataError, ResourceError, UsageError
from mmtune.data.drawing import assign, draw, parse_split
from mmtune.data.intake import Accepted, Ledger, Rejected, Source, take_in
from mmtune.data.lengths import Lengths
from mmtune.data.locate import data_files
from mmtune.data.media import CheckMedia, Found, MediaLookup
from mmtune.data.sample import Sample
from mmtune.data.shards import ShardWriter

SCHEMA_NAME = "mmtune-data/1"
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"
_SPOOL = "rows.spool"
_REPORT_EVERY = 2000

Progress = Callable[[int, "int | None"], None]


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
        workers: Threads that check media; the result does not depend on it.
        overwrite: Replace an existing output.
        progress: Called now and then with rows done and their total if known.

    Returns:
        The result of ``mmtune prepare-data``.

    Raises:
        DataError: Broken or missing files, or more bad rows than allowed; these are then listed beside the output.
        UsageError: Settings that cannot be, or an output that exists.
        ResourceError: The output cannot be written.
    """
    began = time.monotonic()
    target = Path(output)
    if not 0.0 <= max_bad_fraction <= 1.0:
        raise UsageError(f"A fraction of {max_bad_fraction:g} cannot be.", where="--max-bad-fraction", fix="use 0 to 1")
    job = _Job(parse_split(split), seed, embed_media, max_bad_fraction, Lengths.of(model), progress)
    files = [file for name in sources for file in data_files(Path(name))]
    opened = []
    for file in files:
        lookup = MediaLookup(
            file.parent, media_root, allow_outside=allow_outside, allow_urls=allow_urls, look=check_media != "none"
        )
        opened.append(Source.open(file, format, job.shared(lookup)))
    _refuse_existing(target, overwrite)
    rows = take_in(opened, check_media, workers=workers or 0, keep=_chosen(opened, max_samples, seed, shard))
    working = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        working.mkdir(parents=True)
        manifest = job.run(rows, working, target, opened)
        if overwrite and target.exists():
            shutil.rmtree(target)
        elif target.exists():
            target.rmdir()  # only an empty folder was let through
        os.replace(working, target)
    except OSError as error:
        raise ResourceError(
            f"The prepared data cannot be written: {error.strerror or error}.",
            where=str(error.filename or target),
            fix="check free space and permissions, or choose another --output",
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return _result(manifest, target, time.monotonic() - began)


@dataclass
class _Job:
    fractions: Mapping[str, float]
    seed: int
    embed: bool
    max_bad_fraction: float
    lengths: Lengths | None
    progress: Progress | None
    ledger: Ledger = field(default_factory=Ledger)
    roots: list[str] = field(default_factory=list)

    def shared(self, lookup: MediaLookup) -> MediaLookup:
        """Note a lookup's folders, so that rows of all sources can point into one list."""
        self.roots += [root.folder for root in lookup.roots if root.folder not in self.roots]
        return lookup

    def run(
        self, rows: Iterator[Accepted | Rejected], working: Path, target: Path, sources: Sequence[Source]
    ) -> dict[str, Any]:
        ids = self._spool(rows, working, sources)
        try:
            self.ledger.check_budget(self.max_bad_fraction, listed=f"{target}.{REJECTED}")
        except DataError:
            if self.ledger.rejected:
                shutil.copyfile(working / REJECTED, f"{target}.{REJECTED}")
            raise
        splits, fingerprint = self._write(working, assign(ids, dict(self.fractions), self.seed))
        manifest: dict[str, Any] = {
            "schema": SCHEMA_NAME,
            "mmtune": mmtune.__version__,
            "sources": [
                {"path": str(source.path), "format": source.format, "sha256": source.sha256()} for source in sources
            ],
            "rows": self.ledger.accepted,
            "rejected": self.ledger.rejected,
            "reasons": dict(sorted(self.ledger.reasons.items())),
            "leading_answers": self.ledger.leading_answers,
            "media": self.ledger.media,
            "media_rules": dict(sorted(self.ledger.rules.items())),
            "media_roots": self.roots,
            "embedded": self.embed,
            "seed": self.seed,
            "splits": splits,
            "fingerprint": fingerprint,
        }
        if self.lengths is not None:
            manifest["lengths"] = self.lengths.summary()
        (working / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return manifest

    def _spool(self, rows: Iterator[Accepted | Rejected], working: Path, sources: Sequence[Source]) -> list[str]:
        """Write good rows to a spool and bad ones to their list; the splits need all ids before the first shard."""
        ids = []
        lookups = {str(source.path): source.lookup for source in sources}
        number = {folder: index for index, folder in enumerate(self.roots)}
        with (
            (working / _SPOOL).open("w", encoding="utf-8") as spool,
            (working / REJECTED).open("w", encoding="utf-8") as bad,
        ):
            for count, row in enumerate(rows, start=1):
                self.ledger.add(row)
                if isinstance(row, Rejected):
                    bad.write(json.dumps(row.to_json(), ensure_ascii=True) + "\n")
                else:
                    roots = lookups[row.sample.source.rpartition(":")[0]].roots
                    found = [
                        (item.path, item.rule, number[roots[item.root].folder] if item.root >= 0 else -1)
                        for item in row.found
                    ]
                    spool.write(json.dumps([row.sample.to_json(), found]) + "\n")
                    ids.append(row.sample.id)
                    if self.lengths is not None:
                        self.lengths.add(row.sample)
                if self.progress is not None and count % _REPORT_EVERY == 0:
                    self.progress(count, None)
        return ids

    def _write(self, working: Path, splits: Mapping[str, str]) -> tuple[dict[str, Any], str]:
        writers = {name: ShardWriter(working, name, self.roots, embed=self.embed) for name in self.fractions}
        digest = hashlib.sha256()
        with (working / _SPOOL).open(encoding="utf-8") as spool:
            for count, line in enumerate(spool, start=1):
                value, found = json.loads(line)
                sample = Sample.from_json(value)
                name = splits[sample.id]
                writers[name].add(Accepted(sample, tuple(Found(*item) for item in found)))
                value.pop("source")
                digest.update(f"{name}\0{json.dumps(value, sort_keys=True)}\n".encode())
                if self.progress is not None and count % _REPORT_EVERY == 0:
                    self.progress(count, self.ledger.accepted)
        (working / _SPOOL).unlink()
        for writer in writers.values():
            writer.close()
        described = {name: {"rows": writer.rows, "files": writer.files} for name, writer in writers.items()}
        return described, digest.hexdigest()


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
