"""``mmtune inspect``: look at data, a checkpoint or a run, in numbers and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmtune.cli.console import Console, Result
from mmtune.cli.models import BUNDLED, load_for
from mmtune.cli.options import MEDIA_ROOT, POSITIVE
from mmtune.cli.tables import cell, plain_table


def run(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="DATA|CHECKPOINT|RUN", help="What to look at.")],
    samples: Annotated[int, typer.Option(**POSITIVE, help="Rows to show as the model gets them.")] = 6,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page, whole in one file.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="Whose processor shows data. [default: the data's, else nano]")
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="F", help="The picture a checkpoint is asked about.")] = None,
    media_root: MEDIA_ROOT = None,
) -> Result:
    """Show what is in data (prepared or raw), in a checkpoint, or in a run.

    Data: statistics, extremes, the ledger, and rows as tokens, coloured by what is trained. A checkpoint: parts, sizes,
    base, hash, an answer. A run: curves, recipe, environment.
    """
    from mmtune.train.files import write_text

    kind = _kind(target)
    look = {"data": _data, "checkpoint": _checkpoint, "run": _run}[kind]
    options = {"samples": samples, "model": model, "image": image, "media_root": media_root, "page": html is not None}
    found, text, page = look(context.obj, target, options)
    if html is not None and page is not None:
        found["html"] = str(write_text(html, page, "--html"))
        text += f"\n{html}"
    return Result(found, text)


def _kind(target: str) -> str:
    """What a path is, told by its files; everything else is taken for data."""
    folder = Path(target)
    if target == BUNDLED:
        return "checkpoint"
    if (folder / "manifest.json").is_file():
        return "data"
    if (folder / "status.json").is_file() or (folder / "recipe.yaml").is_file():
        return "run"
    return "checkpoint" if (folder / "config.json").is_file() else "data"


def _data(console: Console, target: str, options: dict[str, Any]) -> tuple[dict[str, Any], str, str | None]:
    from mmtune.data.cache import prepared
    from mmtune.data.dataset import read_manifest
    from mmtune.model.build import checkpoint_folder
    from mmtune.model.processing import MMTuneProcessor
    from mmtune.report.inspection.data import data_page, inspect_data

    folder = Path(target)
    if not (folder / "manifest.json").is_file():
        wishes = {"media_root": tuple(options["media_root"] or ()), "max_bad_fraction": 1.0}
        folder = prepared(target, None, wishes)
    manifest = read_manifest(folder)
    name = options["model"] or (manifest.get("settings") or {}).get("model") or BUNDLED
    processor = MMTuneProcessor.from_pretrained(checkpoint_folder(name))
    found, strips = inspect_data(folder, processor, samples=options["samples"], model=name)
    page = data_page(found, strips) if options["page"] else None
    return {**found, "path": target}, _data_text(found), page


def _data_text(found: dict[str, Any]) -> str:
    head = f"{found['rows']:,} rows, {found['media']:,} media, {found['rejected']:,} rejected"
    parts = [plain_table(head, found["sources"])]
    parts += [f"  {number:,} x {reason}" for reason, number in found["reasons"].items()]
    parts += [f"  {number:,} with the warning {code}" for code, number in found["warnings"].items()]
    spread = [
        {"of a row": name, "lowest": value["low"], "median": value["median"], "highest": value["high"]}
        for name, value in found["histograms"].items()
    ]
    parts.append(plain_table("", spread))
    extremes = [
        {"extreme": name, "value": row["value"], "row": row["id"][:60], "where": row["source"]}
        for name, rows in found["outliers"].items()
        for row in rows[:1]
    ]
    parts.append(plain_table("", extremes))
    shown = [{key: row[key] for key in ("id", "positions", "trained", "error")} for row in found["samples"]]
    parts.append(plain_table(f"as {found['as_seen_by']} gets them", shown))
    return "\n".join(parts)


def _checkpoint(console: Console, target: str, options: dict[str, Any]) -> tuple[dict[str, Any], str, str | None]:
    model, processor, name = load_for(console, target, device="cpu", dtype="auto")
    from mmtune.nano.world.draw import draw_example
    from mmtune.report.inspection.checkpoint import checkpoint_page, inspect_checkpoint

    found, shown = inspect_checkpoint(model, processor, name, options["image"] or draw_example())
    rows = [{key: row[key] for key in ("component", "parameters", "bytes", "dtype")} for row in found["components"]]
    lines = [
        plain_table(
            f"{found['method']} on {found['base']['source']} ({found['base']['revision'] or 'no revision'})", rows
        ),
        f"{cell(found['parameters'])} parameters, {cell(found['bytes'])} bytes in {len(found['files'])} files",
        f"sha256 {found['sha256']}",
        f"{found['answer']['question']}  {found['answer']['text']}",
    ]
    return found, "\n".join(lines), checkpoint_page(found, shown) if options["page"] else None


def _run(console: Console, target: str, options: dict[str, Any]) -> tuple[dict[str, Any], str, str | None]:
    from mmtune.report.inspection.run import inspect_run, page

    found = inspect_run(Path(target))
    keys = [key for key in found if key not in ("recipe", "environment", "kind", "error")]
    rows = [{"": key.replace("_", " "), "value": _short(found[key])} for key in keys if found[key] is not None]
    return found, plain_table("", rows), page(Path(target)) if options["page"] else None


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {cell(part)}" for name, part in value.items())
    return cell(value)
