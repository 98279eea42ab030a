"""A few lines for people about results that have many keys, and how far a run came when it did not finish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmtune.cli.console import Console
from mmtune.cli.tables import cell, duration, plain_table
from mmtune.core.errors import MMTuneError


def training_summary(found: dict[str, Any]) -> str:
    """What a person wants to know of a finished run."""
    if found.get("status") == "dry_run":
        return str(found["recipe"]).rstrip("\n")
    loss = found.get("loss") or {}
    lines = [f"{found.get('status')}: {found.get('method')}, {found.get('steps')} steps"]
    if loss.get("first") is not None and loss.get("last") is not None:
        lines.append(f"loss     {loss['first']:.4f} -> {loss['last']:.4f}")
    if found.get("seconds"):
        lines.append(f"time     {duration(found['seconds'])}, {found.get('samples_per_second') or 0:.1f} samples/s")
    lines += [f"{name:<8} {found[name]}" for name in ("run", "model") if found.get(name)]
    if found.get("status") == "completed":
        lines.append(f"try      mmtune generate --model {found.get('model')} --image PICTURE")
    return "\n".join(lines)


@contextmanager
def run_status_beside_errors(console: Console, recipe: Any, verb: str) -> Iterator[None]:
    """When a run ends early, put where it is and how far it came into the JSON, beside the error."""
    from mmtune.train.run_directory import choose_folder, read_status

    try:
        yield
    except MMTuneError as error:
        folder = choose_folder(recipe, verb, None)
        status = read_status(folder)
        if (status.get("error") or {}).get("message") == error.message:  # this run's end, not an older one's
            console.partial = {
                "run": str(folder),
                "method": recipe.method,
                "status": status.get("status"),
                "steps": status.get("step"),
            }
        raise


def eval_summary(found: dict[str, Any]) -> str:
    """The scores as a table with the scorer's name, and what was counted."""
    confidence, rows = found.get("confidence") or {}, []
    for name, value in _flat(found.get("scores") or {}).items():
        interval = confidence.get(name) or {}
        around = f"{cell(interval.get('low'))} - {cell(interval.get('high'))}" if interval else ""
        rows.append({"score": name, "value": cell(value), "95 % interval": around})
    counts = ", ".join(f"{found[name]} {name}" for name in ("missing", "uninferred", "failed") if found.get(name))
    head = f"{found.get('benchmark')}: {found.get('n')} rows" + (f", {counts}" if counts else "")
    head += f"\nby {found.get('scorer')}, rule {found.get('rule')}"
    return plain_table(head, rows) + (f"\n{found['output']}" if found.get("output") else "")


def _flat(scores: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in scores.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
