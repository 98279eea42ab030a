"""The report of ``mmtune quickstart``: methods side by side, beside three readers that do not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtune.report.gallery import Shown
from mmtune.report.page import render
from mmtune.report.plots import Curve, themed
from mmtune.train.files import write_text

LINES = {
    "question_words": (
        "question words",
        "bar",
        "the best answer from the words of the question alone, without a picture",
    ),
    "unbound": ("unbound reader", "gem", "knows which colours, shapes and places occur, but not which belong together"),
    "blank_picture": ("blank picture", "ring", "the trained model itself, shown an empty picture"),
}
_NEAR = 0.025  # dots nearer to each other than this overlap
LABELS = {"llava": "LLaVA", "vlora": "VLoRA", "lavin": "LaVIN", "multi_token": "multi_token"}


def write_quickstart_report(
    output: Path,
    results: Mapping[str, Any],
    shown: Sequence[Shown] = (),
    compared: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``report.html`` into a folder.

    Args:
        results: ``methods`` as in the JSON of the verb, each with ``phases`` (seconds), ``trainable_parameters``,
            ``adapter_bytes`` and ``metrics`` (name of a stage to its rows of ``metrics.jsonl``), or with ``error``; and
            ``seed``, ``seconds``, ``world`` (rows by split), ``base`` (parameters by part), ``environment``.
        shown: Cards of the gallery.
        compared: The runs as :func:`mmtune.report.compare.view.view` shows them; None for one method alone.

    Returns:
        The file.
    """
    methods = [_method(name, found, tone) for tone, (name, found) in enumerate(results["methods"].items())]
    done = [method for method in methods if not method["error"]]
    page = render(
        "quickstart.html.j2",
        title="Pictures for a language model that never saw one",
        results=results,
        methods=methods,
        done=done,
        lines=LINES,
        lanes=_lanes(done, lambda found: found["scores"], lambda found: found["baselines"]),
        tables=_tables(done),
        plots=_plots(done),
        shown=shown,
        compared=compared,
    )
    return write_text(Path(output) / "report.html", page)


def label(name: str) -> str:
    """How a method is spelt in running text."""
    return LABELS.get(name, name)


def _method(name: str, found: Mapping[str, Any], tone: int) -> dict[str, Any]:
    return {"name": name, "label": label(name), "tone": tone % 4, "error": found.get("error"), "found": found}


def _lanes(methods: Sequence[Mapping[str, Any]], scores: Any, baselines: Any) -> list[dict[str, Any]]:
    """One row a question type, with a mark for each method and each line to beat."""
    if not methods:
        return []
    first = methods[0]["found"]
    lanes = []
    for kind in scores(first)["types"]:
        marks = []
        for line in ("question_words", "unbound"):
            value = baselines(first)["types"][line].get(kind)
            marks.append(_mark(LINES[line][0], LINES[line][1], value, None))
        for method in methods:
            blank = baselines(method["found"])["types"]["blank_picture"].get(kind)
            marks.append(_mark(f"{method['label']}, blank picture", "ring", blank, method["tone"]))
        for method in methods:
            value = scores(method["found"])["types"].get(kind)
            marks.append(_mark(method["label"], "dot", value, method["tone"]))
        _separate(marks)
        lanes.append({"name": kind.replace("_", " "), "marks": [mark for mark in marks if mark["value"] is not None]})
    return lanes


def _separate(marks: Sequence[dict[str, Any]]) -> None:
    """Move dots that would lie on each other a little up and down."""
    dots = [mark for mark in marks if mark["shape"] == "dot" and mark["value"] is not None]
    for mark in dots:
        near = [other for other in dots if abs(other["value"] - mark["value"]) < _NEAR]
        if len(near) > 1:
            place = next(at for at, other in enumerate(near) if other is mark)
            mark["shift"] = 26 + 48 * place // (len(near) - 1)


def _mark(name: str, shape: str, value: float | None, tone: int | None) -> dict[str, Any]:
    return {"name": name, "shape": shape, "value": value, "tone": tone, "shift": 50}


def _tables(methods: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All numbers: one table for known combinations, one for those that training never showed."""
    tables = []
    for title, part in (("Combinations seen in training", None), ("Combinations never seen in training", "held_out")):
        if not methods or (part and part not in methods[0]["found"]["scores"]):
            continue
        scores = [_part(method["found"]["scores"], part) for method in methods]
        lines = [_part(method["found"]["baselines"], part) for method in methods]
        head = [method["label"] for method in methods]
        head += [f"{method['label']}, blank" for method in methods] + ["unbound", "words"]
        rows = []
        for kind in scores[0]["types"]:
            cells = [found["types"].get(kind) for found in scores]
            cells += [found["types"]["blank_picture"].get(kind) for found in lines]
            cells += [lines[0]["types"]["unbound"].get(kind), lines[0]["types"]["question_words"].get(kind)]
            rows.append((kind.replace("_", " "), cells))
        total = [found["exact_match"] for found in scores] + [found["blank_picture"] for found in lines]
        total += [lines[0]["unbound"], lines[0]["question_words"]]
        tables.append({"title": title, "head": head, "rows": rows, "total": total})
    return tables


def _part(found: Mapping[str, Any], part: str | None) -> Mapping[str, Any]:
    chosen: Mapping[str, Any] = found[part] if part else found
    return chosen


def _plots(methods: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    plots = []
    for stage, title in (
        ("pretrain", "captions: loss per target token"),
        ("finetune", "questions: loss per target token"),
    ):
        curves: list[Curve] = []
        for method in methods:
            rows = method["found"].get("metrics", {}).get(stage, ())
            points = [(row["step"], row["loss"]) for row in rows if isinstance(row.get("loss"), int | float)]
            if points:
                steps, values = zip(*points, strict=True)
                curves.append(Curve(method["label"], steps, values, noisy=True, color=method["tone"]))
        if curves:
            plots.append(themed(curves, title))
    return plots
