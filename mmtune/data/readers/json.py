"""JSON lists and JSON Lines."""

from __future__ import annotations

from pathlib import Path

from mmtune.data.readers import Reader
from mmtune.data.reading import scan_rows


def _claims(path: Path) -> bool:
    return path.suffix in (".json", ".jsonl", ".ndjson")


READER = Reader(_claims, scan_rows)
