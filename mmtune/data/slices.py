"""Slices: what one of several machines made of its share of the rows, and all of them joined.

A slice holds checked rows about which nothing is decided that needs the others: duplicates, splits and the budget of
bad rows wait for the joining, which gives the same bytes as one preparation of everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError, UsageError
from mmtune.data.drawing import parse_split
from mmtune.data.ledger import Ledger
from mmtune.data.locate import slice_of
from mmtune.data.packing import MANIFEST, SCHEMA_NAME, Packing
from mmtune.data.parts import FolderParts, MergedParts, Part
from mmtune.data.working import Progress
from mmtune.data.workplace import PARTS, workplace

SLICE = f"{SCHEMA_NAME}-slice"
_DESCRIBED = ("sources", "media_roots", "embedded", "seed", "settings")
_NEEDED = (*_DESCRIBED, "rows", "rejected", "limit", "measured")


def write_slice(packing: Packing, parts: FolderParts, working: Path, shard: tuple[int, int]) -> dict[str, Any]:
    """Write the manifest of a slice beside its parts, and return it."""
    ledger = Ledger()
    for part in parts:
        for row in part.rejected:
            ledger.reject(row)
        media = sum(len(items) for items in part.table["media"].to_pylist())
        ledger.accept(media, part.rules, rows=part.table.num_rows)
        ledger.warnings.update(entry["code"] for entry in part.warnings)
    manifest = {
        "schema": SLICE,
        "slice": list(shard),
        **packing.described,
        "limit": packing.limit,
        "measured": packing.measured,
        "rows": ledger.accepted,
        "rejected": ledger.rejected,
        "reasons": dict(sorted(ledger.reasons.items())),
        "warnings": dict(sorted(ledger.warnings.items())),
        "media": ledger.media,
        "media_rules": dict(sorted(ledger.rules.items())),
        "fingerprint": None,
    }
    (working / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def join_slices(
    folders: Sequence[Path], target: Path, max_bad_fraction: float, progress: Progress | None
) -> dict[str, Any]:
    """Make of all slices what one preparation would have made; settings are those that the slices were made with.

    Raises:
        DataError: A slice is missing, given twice, or made of other data or with other settings.
        UsageError: Something among the folders is no slice.
    """
    manifests = [_manifest(folder) for folder in folders]
    parts_of = sorted(zip(manifests, folders, strict=True), key=lambda pair: pair[0]["slice"][0])
    _check_complete([manifest for manifest, _ in parts_of], folders)
    first = parts_of[0][0]
    described = _described(first)
    settings = described["settings"]
    packing = Packing(
        described, parse_split(settings["split"]), described["seed"], frozenset(settings["reject"]), max_bad_fraction,
        [source["weight"] for source in described["sources"]], first["measured"], first["limit"], progress,
    )  # fmt: skip
    merged = MergedParts([_SliceParts(folder, manifest) for manifest, folder in parts_of])
    with workplace(target, {"join": [str(folder) for folder in folders], **described}) as working:
        manifest = packing.write(merged, working, target)
        (working / PARTS).rmdir()
    return manifest


class _SliceParts:
    """The parts of a slice, as many as its manifest says."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self._folder, self._expected = folder, (manifest["rows"], manifest["rejected"])

    def __iter__(self) -> Iterator[Part]:
        rows = rejected = 0
        try:
            for part in FolderParts(self._folder / PARTS):
                rows += part.table.num_rows
                rejected += len(part.rejected)
                yield part
        except (OSError, ValueError, KeyError, TypeError) as error:  # Arrow's own errors are among them
            raise _damaged(self._folder, f"a part cannot be read ({error!r})") from error
        if (rows, rejected) != self._expected:
            expected = "{} rows and {} rejected ones".format(*self._expected)
            raise _damaged(self._folder, f"it should hold {expected}, but holds {rows} and {rejected}")


def _damaged(folder: Path, text: str) -> DataError:
    return DataError(f"The slice is damaged: {text}.", where=str(folder), fix="copy it again, or make it again")


def _described(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: manifest[name] for name in _DESCRIBED}


def _manifest(folder: Path) -> dict[str, Any]:
    found = slice_of(folder)
    if found is None:
        raise UsageError(
            f"'{folder}' is no slice; slices are joined only with slices.",
            where=str(folder),
            fix="name the folders that --shard made, and nothing else",
        )
    missing = [name for name in _NEEDED if name not in found]
    if missing or not _is_shard(found["slice"]):
        raise _damaged(folder, f"its manifest says nothing of {missing[0]}" if missing else "its number cannot be")
    return found


def _is_shard(value: Any) -> bool:
    return isinstance(value, list) and [type(one) for one in value] == [int, int] and 1 <= value[0] <= value[1]


def _check_complete(manifests: Sequence[dict[str, Any]], folders: Sequence[Path]) -> None:
    count = manifests[0]["slice"][1]
    numbers = [manifest["slice"][0] for manifest in manifests]
    where = ", ".join(map(str, folders))
    if any(manifest["slice"][1] != count for manifest in manifests):
        raise DataError(
            "The slices are of different numbers of parts.", where=where, fix="make them with one --shard */N"
        )
    missing = sorted(set(range(1, count + 1)) - set(numbers))
    if missing or len(numbers) != count:
        lacking = ", ".join(f"{number}/{count}" for number in missing)
        shown = f"missing: {lacking}" if missing else "one is given twice"
        fix = f"name the folders that --shard {lacking} made too" if missing else "name each slice once"
        raise DataError(f"The slices are not complete: {shown}.", where=where, fix=fix)
    expected = _described(manifests[0])
    for manifest in manifests[1:]:
        differing = [name for name, value in _described(manifest).items() if value != expected[name]]
        if differing:
            raise DataError(
                f"Slice {manifest['slice'][0]}/{count} differs from the others in {', '.join(differing)}.",
                where=where,
                fix="make all slices of the same data, in the same place, with the same options",
            )
