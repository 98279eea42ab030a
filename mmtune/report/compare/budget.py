"""Whether runs learnt under the same budget: the same rows in the same order, as many steps, the same base.

Stages count with all that came before them: a run that started from the model of another has that run's budget too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmtune.report.compare.runs import Run, run_before
from mmtune.report.inspection.run import data_fingerprint
from mmtune.report.page import flatten

_ASIDE = ("schema", "describe", "source", "method", "model.checkpoint", "model.base", "model.vision", "train.seed")
"""Settings that are part of the budget, or differ by the nature of things."""


def budget(runs: Sequence[Run]) -> dict[str, Any]:
    """What the runs were given.

    Returns:
        ``matched``, ``differences`` (``what`` and its ``values`` by run; empty when matched) and ``settings``: other
        settings that differ, such as learning rates, which are a method's own affair.
    """
    found = {what: {run.name: read(run) for run in runs} for what, read in _PARTS.items()}
    if None in found["data"].values():  # without a fingerprint the names of the data must do
        found["data"] = {run.name: _sources(run) for run in runs}
    differences = [{"what": what, "values": values} for what, values in found.items() if _differ(values)]
    unknown = [{"what": f"{what} (not recorded)", "values": v} for what, v in found.items() if None in v.values()]
    unknown = [entry for entry in unknown if not _differ(entry["values"])]
    return {
        "matched": not differences and not unknown,
        "differences": differences + unknown,
        "shared": {what: next(iter(values.values())) for what, values in found.items() if not _differ(values)},
        "settings": _settings(runs),
    }


def _differ(values: Mapping[str, Any]) -> bool:
    return len({repr(value) for value in values.values()}) > 1


def _sources(run: Run) -> Any:
    return (run.recipe.get("data") or {}).get("train") or "mmtune's drawn pictures"


def _order(run: Run) -> str | None:
    """A name for the rows of every step, in the order of the steps."""
    names = [row.get("rows") for row in run.rows]
    if not names or None in names:
        return None
    return hashlib.sha256(" ".join(map(str, names)).encode()).hexdigest()[:16]


def _setting(part: str, key: str) -> Callable[[Run], Any]:
    return lambda run: (run.recipe.get(part) or {}).get(key)


def _start(run: Run) -> str | None:
    """Fresh weights; the model of a run, told by that run's own budget; or the name of other weights."""
    checkpoint = (run.recipe.get("model") or {}).get("checkpoint")
    if checkpoint is None:
        return "fresh weights"
    before = run_before(run)
    if before is None:
        return f"the checkpoint {checkpoint}"
    given = {what: read(before) for what, read in _PARTS.items()}
    if None in given.values():
        return None
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]
    return f"{given['steps']} steps of {given['verb']}, budget {digest}"


_PARTS: Mapping[str, Callable[[Run], Any]] = {
    "verb": lambda run: run.status.get("verb"),
    "starts from": _start,
    "base": _setting("model", "base"),
    "vision": _setting("model", "vision"),
    "data": lambda run: data_fingerprint(run.folder, run.status),
    "seed": _setting("train", "seed"),
    "rows of every step, in order": _order,
    "steps": lambda run: run.status.get("steps"),
    "samples": lambda run: run.status.get("samples"),
}


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    flat = {run.name: dict(flatten({k: v for k, v in run.recipe.items() if k != "run"})) for run in runs}
    keys = [key for key in dict.fromkeys(key for found in flat.values() for key in found) if key not in _ASIDE]
    told = [{"what": key, "values": {name: found.get(key) for name, found in flat.items()}} for key in keys]
    return [entry for entry in told if _differ(entry["values"])]
