"""From checked rows to shards: what is decided over all of them, the shards, the lists and the manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow.compute as pc

from mmtune.core.errors import DataError
from mmtune.data.columns import SCHEMA, rows_at
from mmtune.data.deciding import Decisions, decide
from mmtune.data.diskarray import Numbers
from mmtune.data.ledger import Ledger, Rejected
from mmtune.data.lengths import summarise
from mmtune.data.parts import Part, Parts
from mmtune.data.shards import ShardWriter
from mmtune.data.working import Progress

SCHEMA_NAME = "mmtune-data/2"
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"
WARNINGS = "warnings.jsonl"
_SAYS = {
    "duplicate": "Row {} says the same about the same media.",
    "near_duplicate": "Row {} is nearly the same.",
}
_LISTED = 100  # warnings of each code that are listed; all are counted


@dataclass(frozen=True)
class Packing:
    """How parts become prepared data.

    Attributes:
        described: What the manifest says of the sources and settings; also what slices must agree on.
        fractions: Splits that were asked for.
        reject: Codes of warnings that rows are rejected for.
        limit: Most positions of the model that measured the rows, if any did.
    """

    described: Mapping[str, Any]
    fractions: dict[str, float] | None
    seed: int
    reject: frozenset[str]
    max_bad_fraction: float
    weights: Sequence[float]
    measured: bool
    limit: int | None
    progress: Progress | None = None

    def write(self, parts: Parts, working: Path, target: Path) -> dict[str, Any]:
        """Write everything into ``working``, which is to become ``target``; returns the manifest.

        Raises:
            DataError: More bad rows than allowed; they are then listed beside the target.
        """
        decisions = decide(
            parts, working, self.fractions, self.seed, self.weights, reject=self.reject,
            near=self.described["settings"]["near_duplicates"],
        )  # fmt: skip
        ledger = self._list(parts, decisions, working)
        self._check(ledger, working, target)
        writers, fingerprint = self._write_shards(parts, decisions, working)
        manifest = self._manifest(ledger, writers, fingerprint, decisions)
        (working / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return manifest

    def _list(self, parts: Parts, decisions: Decisions, working: Path) -> Ledger:
        """Write the lists of rejected rows and warnings, and count."""
        ledger = Ledger()
        with _Lists(working, ledger) as lists:
            for part, where in _placed(parts):
                lists.write(part, list(self._late(part, decisions, where)))
                used = decisions.copies[where] > 0
                media = pc.list_value_length(part.table["media"]).to_numpy()
                ledger.accept(int(media[used].sum()), part.rules, rows=int((~decisions.gone[where]).sum()))
        return ledger

    def _write_shards(self, parts: Parts, decisions: Decisions, working: Path) -> tuple[dict[str, ShardWriter], str]:
        digest = hashlib.sha256()
        writers = {name: ShardWriter(working, name) for name in decisions.names}
        for part, where in _placed(parts):
            table, copies, split = part.table, decisions.copies[where], decisions.split[where]
            kept = table.select(SCHEMA.names)
            sizes, digests = table["bytes"].to_numpy(), table["digest"].to_pylist()
            for index, name in enumerate(decisions.names):
                chosen = np.repeat(np.arange(table.num_rows), np.where(split == index, copies, 0))
                if len(chosen):
                    writers[name].write(rows_at(kept, chosen, sizes), sizes[chosen].tolist())
            for place in np.flatnonzero(copies).tolist():
                digest.update(f"{decisions.names[split[place]]}\0{copies[place]}\0".encode() + digests[place])
            if self.progress is not None:
                self.progress(where.stop, len(decisions.row))
        for writer in writers.values():
            writer.close()
        return writers, digest.hexdigest()

    def _late(self, part: Part, decisions: Decisions, where: slice) -> Iterator[Rejected | dict[str, Any]]:
        """What is found out about rows only now."""
        leaks, row = decisions.leaks[where], decisions.row[where]
        earlier = {code: numbers[where] for code, numbers in decisions.earlier.items()}
        for place in np.flatnonzero(np.any([leaks >= 0, *(one >= 0 for one in earlier.values())], axis=0)).tolist():
            source, name = part.table["source"][place].as_py(), part.table["id"][place].as_py()
            number = int(row[place])
            if leaks[place] >= 0:
                text = f"A picture of the row is in the training split too, in row {int(leaks[place])}."
                yield _rejected(source, name, number, "leak", text, "split by picture with --split train=…,val=…")
                continue
            said = {code: _SAYS[code].format(int(one[place])) for code, one in earlier.items() if one[place] >= 0}
            wished = next((code for code in said if code in self.reject), None)
            if wished is not None:
                yield _rejected(source, name, number, wished, said[wished], "leave it out", wished=True)
                continue
            for code, text in said.items():
                yield {"source": source, "id": name, "code": code, "text": text, "row": number}

    def _check(self, ledger: Ledger, working: Path, target: Path) -> None:
        try:
            ledger.check_budget(self.max_bad_fraction, listed=f"{target}.{REJECTED}")
        except DataError:
            if ledger.rejected:
                shutil.copyfile(working / REJECTED, f"{target}.{REJECTED}")
            raise

    def _manifest(
        self, ledger: Ledger, writers: Mapping[str, ShardWriter], fingerprint: str, decisions: Decisions
    ) -> dict[str, Any]:
        written = sum(writer.rows for writer in writers.values())
        names = {index: entry["path"] for index, entry in enumerate(self.described["sources"])}
        totals = _totals(decisions, len(names))
        manifest: dict[str, Any] = {
            "schema": SCHEMA_NAME,
            **self.described,
            "rows": written,
            "rejected": ledger.rejected,
            "reasons": dict(sorted(ledger.reasons.items())),
            "warnings": dict(sorted(ledger.warnings.items())),
            "leading_answers": ledger.warnings["leading_answer"],
            **{f"{code}s": totals[code] for code in decisions.earlier},
            "copies": written - totals["used"],
            "left_out_by_weight": len(decisions.row) - totals["used"] - totals["gone"],
            "media": ledger.media,
            "media_rules": dict(sorted(ledger.rules.items())),
            "rows_by_source": {name: totals[index] for index, name in names.items()},
            "splits": {name: {"rows": writer.rows, "files": writer.files} for name, writer in writers.items()},
            "fingerprint": fingerprint,
        }
        if self.measured:
            manifest["lengths"] = summarise(_measured(decisions), names, self.limit)
        return manifest


def _totals(decisions: Decisions, sources: int) -> Counter[str | int]:
    """How many rows are used, gone and like an earlier one; and by the number of their source, how many are written."""
    totals: Counter[str | int] = Counter()
    for where, copies in decisions.copies.placed():
        totals["used"] += int((copies > 0).sum())
        totals["gone"] += int(decisions.gone[where].sum())
        for code, numbers in decisions.earlier.items():
            totals[code] += int((numbers[where] >= 0).sum())
        by_source = np.bincount(decisions.origin[where], weights=copies, minlength=sources)
        totals.update(dict(enumerate(by_source.astype(np.int64).tolist())))
    return totals


def _measured(decisions: Decisions) -> Iterator[tuple[Numbers, Numbers, Numbers]]:
    """Positions, targets and sources of the rows that are used."""
    for where, copies in decisions.copies.placed():
        used = copies > 0
        yield decisions.positions[where][used], decisions.targets[where][used], decisions.origin[where][used]


def _placed(parts: Parts) -> Iterator[tuple[Part, slice]]:
    """Parts with the places of their rows among all accepted ones."""
    start = 0
    for part in parts:
        yield part, slice(start, start + part.table.num_rows)
        start += part.table.num_rows


def _rejected(
    source: str, name: str, number: int, reason: str, text: str, fix: str, *, wished: bool = False
) -> Rejected:
    path, _, line = source.rpartition(":")
    return Rejected(path, int(line), name, reason, text, fix, number, wished)


class _Lists:
    """``rejected.jsonl`` and ``warnings.jsonl``, in the order of the rows."""

    def __init__(self, working: Path, ledger: Ledger) -> None:
        self._working, self.ledger = working, ledger
        self._files: list[TextIO] = []
        self._listed: Counter[str] = Counter()

    def __enter__(self) -> _Lists:
        self._files = [(self._working / name).open("w", encoding="utf-8") for name in (REJECTED, WARNINGS)]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def write(self, part: Part, late: Sequence[Rejected | dict[str, Any]]) -> None:
        """Count and list what was found about the rows of a part."""
        rejected = [*part.rejected, *(entry for entry in late if isinstance(entry, Rejected))]
        for row in sorted(rejected, key=lambda row: row.row):
            self.ledger.reject(row)
            self._files[0].write(json.dumps(row.to_json(), ensure_ascii=True) + "\n")
        gone = {entry.row for entry in late if isinstance(entry, Rejected)}
        warnings = [*part.warnings, *(entry for entry in late if not isinstance(entry, Rejected))]
        for entry in sorted(warnings, key=lambda entry: entry["row"]):
            if entry["row"] in gone:
                continue
            code = entry["code"]
            self.ledger.warnings[code] += 1
            if self._listed[code] < _LISTED:
                self._listed[code] += 1
                self._files[1].write(json.dumps(entry, ensure_ascii=True) + "\n")


def read_rejected(folder: Path) -> Iterator[Rejected]:
    """The rows that were rejected when a folder was prepared."""
    path = folder / REJECTED
    with path.open(encoding="utf-8") if path.is_file() else nullcontext(()) as lines:
        for line in lines:
            yield Rejected.from_json(json.loads(line))


def replace_folder(working: Path, target: Path) -> None:
    """Put a finished folder where an older one may stand."""
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
        os.replace(working, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(working, target)
