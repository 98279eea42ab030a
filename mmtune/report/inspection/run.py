"""A run looked at: how it went, with what, where, and on which data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmtune.report.run import read_rows, run_page, run_parts

_KEYS = (
    "steps", "samples", "tokens", "loss", "trainable_parameters", "seconds", "samples_per_second",
    "tokens_per_second", "peak_memory_bytes", "rejected", "truncated", "error",
)  # fmt: skip


def inspect_run(folder: Path) -> dict[str, Any]:
    """The numbers of a run directory, finished or not."""
    parts = run_parts(folder)
    rows = read_rows(folder / "metrics.jsonl")
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    status = parts["status"]
    return {
        "kind": "run",
        "path": str(folder),
        "status": status.get("status"),
        "verb": status.get("verb"),
        "method": parts["recipe"].get("method"),
        **{key: status[key] for key in _KEYS if key in status},
        "last_step": rows[-1]["step"] if rows else 0,
        "lowest_loss": min(losses, default=None),
        "data_fingerprint": data_fingerprint(folder, status),
        "command": parts["command"],
        "recipe": parts["recipe"],
        "environment": parts["environment"],
    }


def data_fingerprint(folder: Path, status: dict[str, Any]) -> str | None:
    """Of the data that the run learnt from, as its status or its newest checkpoint says."""
    if status.get("data_fingerprint"):
        return str(status["data_fingerprint"])
    for path in sorted(folder.glob("checkpoints/*/*.json"), reverse=True):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and isinstance(found.get("data"), str):
            return str(found["data"])
    return None


def page(folder: Path) -> str:
    """The page: the report of the run with its data."""
    found = inspect_run(folder)
    return run_page(folder, extra=[("data fingerprint", found["data_fingerprint"])])
