"""A few lines for people about results that have many keys."""

from __future__ import annotations

from typing import Any

from mmtune.cli.tables import duration


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
