"""What is told of a training run: a few lines for people, and how far it came when it did not finish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtune.cli.console import Console
from mmtune.cli.tables import duration
from mmtune.core.errors import MMTuneError


def training_summary(found: dict[str, Any]) -> str:
    """What a person wants to know of a finished run."""
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
def run_status_beside_errors(console: Console, recipe: Any, verb: str, output: str | None) -> Iterator[None]:
    """When a run ends early, put where it is and how far it came into the JSON, beside the error."""
    from mmtune.train.run_directory import choose_folder, read_status

    try:
        yield
    except MMTuneError as error:
        folder = choose_folder(recipe, verb, Path(output) if output else None)
        status = read_status(folder)
        if (status.get("error") or {}).get("message") == error.message:  # this run's end, not an older one's
            console.partial = {
                "run": str(folder),
                "method": recipe.method,
                "status": status.get("status"),
                "steps": status.get("step"),
            }
        raise
