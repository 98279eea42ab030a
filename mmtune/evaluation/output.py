"""What an evaluation leaves behind: scores, verdicts, tables for people, and a sheet that VLMEvalKit reads."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmtune.core.errors import MMTuneError
from mmtune.data.media import data_uri_bytes
from mmtune.data.sample import Media, Sample, Turn
from mmtune.evaluation.benchmarks.base import Scores, Table
from mmtune.train.files import replacing, write_json, write_text, writing

_CARDS = 24  # wrong answers on the page
_VERDICTS = ("hit", "score", "exact_match")  # what items call their verdict


def make_folder(output: str | Path | None) -> Path | None:
    """The folder of an output, made if need be; None for none.

    Raises:
        ResourceError: It cannot be made.
    """
    if output is None:
        return None
    folder = Path(output)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_output(folder: Path, result: Mapping[str, Any], scored: Scores, table: Table) -> None:
    """Write ``items.jsonl``, ``scores.json``, ``report.md``, ``report.html`` and, of a table, the export.

    Args:
        table: The scored rows, in the order of the items.

    Raises:
        ResourceError: The folder cannot be written.
    """
    with writing(folder):
        with replacing(folder / "items.jsonl") as partial, partial.open("w", encoding="utf-8") as file:
            for item in scored.items:
                file.write(json.dumps(item, ensure_ascii=False) + "\n")
        write_json(folder / "scores.json", result)
        cards = _wrong(scored.items, table.samples)
        write_text(folder / "report.md", _markdown(result, cards))
        _write_page(folder, result, cards)
        if table.exported:
            _export(folder, str(result["model"] or "model"), scored, table)


def score_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and interval of every number, as text."""
    found = []
    for name, value in _flat(result["scores"]):
        interval = result["confidence"].get(name) or {}
        around = f"{_number(interval['low'])} – {_number(interval['high'])}" if interval.get("low") is not None else ""
        found.append((name, _number(value), around))
    return found


def _flat(scores: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in scores.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _wrong(items: Sequence[Mapping[str, Any]], samples: Sequence[Sample]) -> list[tuple[Sample, Mapping[str, Any]]]:
    """Wrong rows spread over the data, with their verdicts."""
    from mmtune.report.gallery import spread

    by_id = {str(item.get("id")): item for item in items}
    in_order = items if len(items) == len(samples) else [by_id.get(sample.id, {}) for sample in samples]
    verdicts = list(zip(samples, in_order, strict=True))
    wrong = [(sample, item) for sample, item in verdicts if verdict_of(item) == 0]
    return [wrong[at] for at in spread(_CARDS, len(wrong))]


def verdict_of(item: Mapping[str, Any]) -> Any:
    """What an item scored: 0 or 1, a share of the points, or None where rows have no verdict."""
    return next((item[name] for name in _VERDICTS if name in item), None)


def _counts(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{result[name]} {name}" for name in ("missing", "uninferred", "failed"))


def _markdown(result: Mapping[str, Any], cards: Sequence[tuple[Sample, Mapping[str, Any]]]) -> str:
    lines = [
        f"# {result['benchmark']}: {result['model'] or 'given answers'}",
        "",
        f"Scored by {result['scorer']}, rule {result['rule']}. {result['n']} rows, {_counts(result)}.",
        f"Data {result['data_sha256'][:16]}.",
        "",
        "| score | value | 95 % interval |",
        "|---|---:|---|",
        *(f"| {_cell(name)} | {value} | {around} |" for name, value, around in score_rows(result)),
        "",
    ]
    if cards:
        lines += ["## Wrong answers", "", "| row | question | right | answer |", "|---|---|---|---|"]
    for sample, item in cards:
        asked = sample.turns[-1] if sample.answer is None else sample.turns[-2]
        cells = (sample.id, asked.text, item.get("gold", ""), item.get("prediction", ""))
        lines.append("| " + " | ".join(_cell(str(cell)) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")[:200]


def _write_page(folder: Path, result: Mapping[str, Any], cards: Sequence[tuple[Sample, Mapping[str, Any]]]) -> None:
    from mmtune.report.gallery import show
    from mmtune.report.page import render

    shown = []
    for sample, item in cards:
        card = show(drawable(sample), {"model": str(item.get("prediction", ""))}, {"model": False})
        gold = item.get("gold")
        shown.append(replace(card, gold=", ".join(gold) if isinstance(gold, list) else str(gold)))
    title = f"{result['benchmark']}: {result['model'] or 'given answers'}"
    page = render(
        "eval.html.j2", title=title, result=result, counts=_counts(result), rows=score_rows(result), shown=shown
    )
    write_text(folder / "report.html", page)


def drawable(sample: Sample) -> Sample:
    """The row with pictures inside data URIs as bytes; a broken one is left as it is and not drawn."""
    return replace(sample, turns=tuple(Turn(turn.role, tuple(map(_part, turn.parts))) for turn in sample.turns))


def _part(part: Any) -> Any:
    if not isinstance(part, Media) or not str(part.uri).startswith("data:"):
        return part
    try:
        return Media(part.modality, data_uri_bytes(part.uri))
    except MMTuneError:
        return Media(part.modality, None)


def _export(folder: Path, model: str, scored: Scores, table: Table) -> None:
    """The table without pictures, with the predictions, under the name that VLMEvalKit looks for.

    It is read there with ``PRED_FORMAT=tsv`` and ``run.py --mode eval``.
    """
    said = {str(item.get("id")): item.get("prediction", "") for item in scored.items}
    rows = [row for row in table.exported if str(row["index"]) in said]
    if not rows:
        return
    name = re.sub(r"[^\w.-]+", "-", model).strip("-.") or "model"
    path = folder / "vlmevalkit" / f"{name}_{Path(table.files[0]).stem}.tsv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow([*rows[0], "prediction"])
        for row in rows:
            writer.writerow(["" if cell is None else cell for cell in (*row.values(), said[str(row["index"])])])
