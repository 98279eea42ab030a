"""Prepared data looked at: what is in it, and rows as a model gets them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError
from mmtune.data.dataset import load_samples, read_manifest
from mmtune.data.packing import REJECTED, WARNINGS
from mmtune.model.processing import MMTuneProcessor
from mmtune.report.data import with_examples
from mmtune.report.gallery import spread
from mmtune.report.inspection.statistics import look_at
from mmtune.report.inspection.strips import Strip, make_strips
from mmtune.report.page import render


def inspect_data(
    folder: Path, processor: MMTuneProcessor, *, samples: int, model: str
) -> tuple[dict[str, Any], list[Strip]]:
    """The numbers of a prepared folder, and some of its rows as ``processor`` makes them.

    Raises:
        DataError: No prepared data, or damaged data.
    """
    manifest = read_manifest(folder)
    if manifest.get("slice") or not manifest.get("rows"):
        raise DataError("There are no rows to look at.", where=str(folder), fix="join the slices first")
    table = load_samples(folder, open_files=1)
    rows = []
    for index in spread(samples, len(table)):
        try:
            rows.append(table[index])
        except DataError:  # a medium that cannot be had now; its row is counted all the same
            rows.append(table.rows[index])
    strips = make_strips(rows, processor)
    keys = (
        "rows",
        "rejected",
        "reasons",
        "warnings",
        "media",
        "duplicates",
        "copies",
        "fingerprint",
        "seed",
        "settings",
    )
    found = {
        "kind": "data",
        "path": str(folder),
        "as_seen_by": model,
        **{key: manifest[key] for key in keys},
        "splits": {name: part["rows"] for name, part in manifest["splits"].items()},
        "formats": {source["path"]: source["format"] for source in manifest["sources"]},
        "lengths": manifest.get("lengths"),
        **look_at(folder, manifest),
        "samples": [
            {"id": s.id, "source": s.source, "positions": s.positions, "trained": s.trained, "error": s.error}
            for s in strips
        ],
    }
    return found, strips


def data_page(found: Mapping[str, Any], strips: list[Strip]) -> str:
    """The page."""
    folder = Path(found["path"])
    return render(
        "inspect_data.html.j2",
        title=f"Data · {folder.name}",
        found=found,
        strips=strips,
        rejected=with_examples(folder / REJECTED, "reason", found["reasons"]),
        warnings=with_examples(folder / WARNINGS, "code", found["warnings"]),
    )
