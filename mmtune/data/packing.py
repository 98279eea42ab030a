"""From checked rows to shards: the spool, the splits, the manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError
from mmtune.data.drawing import assign
from mmtune.data.intake import Accepted, Ledger, Rejected, Source
from mmtune.data.lengths import Lengths
from mmtune.data.media import Found
from mmtune.data.sample import Sample
from mmtune.data.shards import ShardWriter

SCHEMA_NAME = "mmtune-data/1"
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"
Progress = Callable[[int, "int | None"], None]
_SPOOL = "rows.spool"
_REPORT_EVERY = 2000


@dataclass
class PackingJob:
    """One preparation under way: what is to be done, and what happened so far."""

    fractions: Mapping[str, float]
    seed: int
    embed: bool
    max_bad_fraction: float
    lengths: Lengths | None
    progress: Progress | None
    ledger: Ledger = field(default_factory=Ledger)
    roots: list[str] = field(default_factory=list)

    def run(
        self, rows: Iterator[Accepted | Rejected], working: Path, target: Path, sources: Sequence[Source]
    ) -> dict[str, Any]:
        """Write everything into ``working``, which is to become ``target``; returns the manifest.

        Raises:
            DataError: More bad rows than allowed; they are then listed beside the target.
        """
        for source in sources:
            self.roots += [root.folder for root in source.lookup.roots if root.folder not in self.roots]
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
