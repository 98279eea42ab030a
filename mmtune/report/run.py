"""The report of a training run, from the files of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmtune.core.errors import DataError
from mmtune.report.gallery import Shown
from mmtune.report.page import flatten, render
from mmtune.report.plots import learning_rate_curves, loss_curves, themed, write_plots
from mmtune.train.files import write_text

_PACKAGES = ("mmtune", "torch", "transformers", "peft", "accelerate")


def write_run_report(
    run_dir: str | Path, *, components: Sequence[Mapping[str, Any]] = (), shown: Sequence[Shown] = ()
) -> Path:
    """Write ``report.html`` and the files of ``plots/`` into a run's folder.

    Args:
        run_dir: A folder with ``recipe.yaml``, ``status.json`` and ``metrics.jsonl``; what is missing is left out.
        components: The model's parts, one row each with the same keys.
        shown: Validation rows with the model's answers, as :func:`mmtune.report.answers.answer_samples` makes them.

    Returns:
        The file.

    Raises:
        DataError: No such folder.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise DataError("No such run.", where=str(folder), fix="name the folder of a run")
    rows = read_rows(folder / "metrics.jsonl")
    if rows:
        write_plots(folder / "plots", rows)
    return write_text(folder / "report.html", run_page(folder, components=components, shown=shown))


def run_parts(folder: Path) -> dict[str, Any]:
    """What the files of a run say: ``recipe``, ``status``, ``environment``, ``command``; empty where one is missing."""
    return {
        "recipe": _yaml(folder / "recipe.yaml"),
        "status": _json(folder / "status.json"),
        "environment": _json(folder / "env.json"),
        "command": _text(folder / "command.txt").strip(),
    }


def run_page(
    folder: Path,
    *,
    components: Sequence[Mapping[str, Any]] = (),
    shown: Sequence[Shown] = (),
    extra: Sequence[tuple[str, Any]] = (),
) -> str:
    """The page of a run as text; ``extra`` are further lines of its environment."""
    parts, rows = run_parts(folder), read_rows(folder / "metrics.jsonl")
    recipe, status = parts["recipe"], parts["status"]
    return render(
        "run.html.j2",
        title=f"{status.get('verb', 'training').capitalize()} · {recipe.get('method', folder.name)}",
        folder=folder.name,
        status=status,
        figures=_figures(status, rows),
        components=components,
        settings=flatten(recipe),
        command=parts["command"],
        environment=[*_environment(parts["environment"]), *extra],
        plots=[
            themed(curves, label)
            for curves, label in (
                (loss_curves(rows), "loss per target token"),
                (learning_rate_curves(rows), "learning rate"),
            )
            if curves
        ],
        shown=shown,
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; half-written lines are left out."""
    rows = []
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def _figures(status: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The few numbers that stand at the top."""
    loss = status.get("loss") or {}
    found = [
        {"name": "loss", "value": loss.get("last"), "kind": "loss", "note": _first(loss)},
        {"name": "trained parameters", "value": status.get("trainable_parameters"), "kind": "count", "note": None},
        {"name": "time", "value": status.get("seconds"), "kind": "seconds", "note": _pace(status)},
    ]
    memory = status.get("memory") or {}
    if memory.get("measured_bytes"):
        planned = memory.get("planned_bytes")
        note = f"{planned / 2**20:,.0f} MiB were planned" if planned else None
        found.append(
            {"name": "memory, MiB", "value": round(memory["measured_bytes"] / 2**20), "kind": "count", "note": note}
        )
    features = status.get("features") or {}
    if features:
        note = f"from disk, {features['misses']:,} encoded, {features['bytes_read'] / 1e6:,.0f} MB read"
        found.append({"name": "kept features", "value": features["hits"], "kind": "count", "note": note})
    validation = [(row["validation_loss"], row["step"]) for row in rows if row.get("validation_loss") is not None]
    if validation:
        best, step = min(validation)
        found.insert(
            1, {"name": "validation loss", "value": best, "kind": "loss", "note": f"the lowest, at step {step:,}"}
        )
    return [figure for figure in found if figure["value"] is not None]


def _first(loss: Mapping[str, Any]) -> str | None:
    return f"at the end, {loss['first']:.3f} at the start" if loss.get("first") is not None else None


def _pace(status: Mapping[str, Any]) -> str | None:
    steps, rate = status.get("steps"), status.get("samples_per_second")
    parts = [f"{steps:,} steps"] if steps else []
    return ", ".join([*parts, f"{rate:.1f} samples/s"] if rate else parts) or None


def _environment(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    packages = found.get("packages") or {}
    rows = [(name, found[name]) for name in ("python", "platform", "cpus", "threads", "devices") if found.get(name)]
    return rows + [(name, packages[name]) for name in _PACKAGES if packages.get(name)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path) or "{}")
    except ValueError:  # cut off by a crash; the report shows the rest
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(_text(path))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
