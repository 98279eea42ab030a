"""``mmtune finetune --replay RUN --step N``: one step of a run again, to see what was in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtune.cli.console import Console, Result
from mmtune.cli.display import training_display
from mmtune.core.errors import UsageError

_SHOWN_ROWS = 32


def replay_step(console: Console, run: str | None, step: int | None, device: str | None) -> Result:
    """Rebuild a step's batch and show its rows, loss and gradient.

    Raises:
        UsageError: Only one of the two options is given.
    """
    if run is None or step is None:
        missing = "--replay" if run is None else "--step"
        fix = "mmtune finetune --replay RUN --step N"
        raise UsageError("--replay and --step belong together.", where=missing, fix=fix)
    from mmtune.train.replay import replay

    found = replay(Path(run), step, device=device, display=training_display(console))
    return Result(found, _text(found["replay"]))


def _text(seen: dict[str, Any]) -> str:
    rows = [f"  {name}  {length} tokens" for name, length in zip(seen["ids"], seen["lengths"], strict=True)]
    more = [f"  … and {len(rows) - _SHOWN_ROWS} more"] if len(rows) > _SHOWN_ROWS else []
    lines = [f"step {seen['step']}: {len(rows)} rows, {seen['targets']} target tokens", *rows[:_SHOWN_ROWS], *more]
    lines.append(f"loss {seen['loss']:.6f}, gradient {seen['grad_norm']:.6f}")
    if seen["first_non_finite"]:
        lines.append(f"not finite from {seen['first_non_finite']} on")
    if seen["recorded"] is not None:
        kind = "the same rows" if seen["same_rows"] else "OTHER ROWS"
        lines.append(f"recorded: loss {seen['recorded']['loss']}, {kind}")
    return "\n".join(lines)
