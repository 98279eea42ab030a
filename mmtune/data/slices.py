"""Slices: what one of several machines made of its share of the rows, and all of them joined.

A slice holds checked rows about which nothing is decided that needs the others: duplicates, splits and the budget of
bad rows wait for the joining, which gives the same bytes as one preparation of everything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError, UsageError
from mmtune.data.drawing import parse_split
from mmtune.data.ledger import Ledger
from mmtune.data.locate import slice_of
from mmtune.data.packing import MANIFEST, SCHEMA_NAME, Packing
from mmtune.data.parts import FolderParts, MergedParts
from mmtune.data.working import Progress
from mmtune.data.workplace import PARTS, workplace

SLICE = f"{SCHEMA_NAME}-slice"


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
    merged = MergedParts([FolderParts(folder / PARTS) for _, folder in parts_of])
    with workplace(target, {"join": [str(folder) for folder in folders], **described}) as working:
        manifest = packing.write(merged, working, target)
        (working / PARTS).rmdir()
    return manifest


def _described(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: manifest[name] for name in ("sources", "media_roots", "embedded", "seed", "settings")}


def _manifest(folder: Path) -> dict[str, Any]:
    found = slice_of(folder)
    if found is None:
        raise UsageError(
            f"'{folder}' is no slice; slices are joined only with slices.",
            where=str(folder),
            fix="name the folders that --shard made, and nothing else",
        )
    return found


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
