"""A comparison in words and plots: what the page, the Markdown and the terminal share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mmtune.report.compare.build import Compared
from mmtune.report.compare.pareto import front
from mmtune.report.page import format_bytes, format_count, format_flops, format_score, format_seconds
from mmtune.report.plots import Curve, Point, Theme, draw_points, in_themes, themed

_OVER = {"steps": "step", "tokens": "tokens", "seconds": "seconds of training", "flops": "operations"}
_LEVEL = 0.05
_TONES = 4  # colours; runs that share one are told apart by dashes
_SPENT: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("steps", "steps", format_count),
    ("samples", "samples", format_count),
    ("tokens", "tokens", format_count),
    ("seconds", "training time", format_seconds),
    ("training_flops", "training operations", format_flops),
)
_COSTS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("trainable_parameters", "trained parameters", format_count),
    ("checkpoint_bytes", "checkpoint", format_bytes),
    ("peak_memory_bytes", "peak memory in training", format_bytes),
    ("loss", "loss at the end", lambda value: "–" if value is None else f"{value:.3f}"),
    ("visual_tokens", "visual tokens per picture", format_count),
    ("prefill_flops", "operations of picture and question", format_flops),
    ("first_token_s", "time to first token", lambda value: "–" if value is None else f"{1000 * value:,.1f} ms"),
    ("tokens_per_second", "tokens a second", lambda value: "–" if value is None else f"{value:,.0f}"),
)


def cost_rows(result: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Name of each figure and its text for every run; what was spent is that of all stages."""
    runs = result["runs"].values()
    spent = [(label, [show(found["total"].get(key)) for found in runs]) for key, label, show in _SPENT]
    return spent + [(label, [show(found.get(key)) for found in runs]) for key, label, show in _COSTS]


def stages_sentence(result: Mapping[str, Any]) -> str | None:
    """What the sums of :func:`cost_rows` are made of; None where no run has more than one stage."""
    told = {name: _stages(found) for name, found in result["runs"].items()}
    if all(len(found["stages"]) == 1 for found in result["runs"].values()):
        return None
    same = len(set(told.values())) == 1
    text = f"{next(iter(told.values()))} each" if same else "; ".join(f"{name}: {text}" for name, text in told.items())
    return f"Steps, samples, tokens, time and operations are those of all stages: {text}."


def interval(row: Mapping[str, Any]) -> str:
    """A 95 % interval."""
    return f"{format_score(row['low'])} to {format_score(row['high'])}" if row.get("low") is not None else "–"


def p_value(p: float) -> str:
    """A p value as it is printed."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def test_rows(table: Mapping[str, Any]) -> list[list[str]]:
    """Every pair: difference with interval, rows that only one has right, p, and p corrected for all pairs."""
    rows = []
    for test in table["tests"]:
        drawn, exact = test["bootstrap"], test["mcnemar"]
        only = f"{exact['only_second']} : {exact['only_first']}" if exact else "–"
        difference = f"{drawn['difference']:+.3f} ({drawn['low']:+.3f} to {drawn['high']:+.3f})"
        pair = f"{test['second']} − {test['first']}"
        rows.append([pair, difference, only, p_value(test["p"]), p_value(test["p_holm"])])
    return rows


def unknown(table: Mapping[str, Any]) -> str | None:
    """What nobody can tell any more: how given answers came about, and which rows of lost data belong together."""
    told = []
    if table["given"]:
        whose = " and ".join(", ".join(table["given"]).rsplit(", ", 1))
        told.append(f"Answers of {whose} were given: by which prompts, decoding and dtype is unknown, and may differ.")
    if table["data_read"] is False:
        told.append("The data is not where it was, or has changed: the tests take every row for itself.")
    return " ".join(told) or None


def origins(result: Mapping[str, Any]) -> list[str]:
    """Where each run is, or each evaluation and the model that answered."""
    if result["runs"]:
        return [f"{name}: {found['run']}" for name, found in result["runs"].items()]
    rows = [row for table in result["evaluations"] for row in table["rows"]]
    return [f"{row['run']}: {row['output']}, {_answered(row)}" for row in rows]


def _answered(row: Mapping[str, Any]) -> str:
    return f"answered by {row['model']}" if row["model"] else "answers given"


def verdict(table: Mapping[str, Any]) -> str | None:
    """Which runs are told apart by the paired tests; None where nothing was tested."""
    tests = table["tests"]
    if not tests:
        return None
    alike = [f"{test['first']} and {test['second']}" for test in tests if test["p_holm"] >= _LEVEL]
    level = (
        f"(p < {_LEVEL:g} after Holm's correction for {len(tests)} pairs)" if len(tests) > 1 else f"(p < {_LEVEL:g})"
    )
    if not alike:
        return f"Every difference is more than chance {level}."
    if len(alike) == len(tests):
        return f"No difference is more than chance {level}."
    return f"Every difference is more than chance {level}, but for {', '.join(alike)}."


def budget_sentence(result: Mapping[str, Any]) -> str:
    """What the runs were given, in a sentence."""
    budget = result["budget"]
    if budget is None:
        return "Scores alone: how long the models learnt and what they cost is no part of evaluations."
    if not budget["matched"]:
        return "Not under a matched budget: " + ", ".join(entry["what"] for entry in budget["differences"]) + "."
    shared, first = budget["shared"], next(iter(result["runs"].values()))
    parts = f" ({_stages(first)})" if len(first["stages"]) > 1 else ""
    return (
        f"Under a matched budget: {format_count(first['total']['samples'])} samples in "
        f"{format_count(first['total']['steps'])} steps{parts}, the same rows in the same order, "
        f"seed {shared['seed']}, base {shared['base']}."
    )


def _stages(found: Mapping[str, Any]) -> str:
    return " + ".join(f"{format_count(stage['steps'])} of {stage['verb']}" for stage in found["stages"])


def difference_rows(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[list[str]]:
    """Settings that differ, a row each."""
    return [[entry["what"], *(_setting(entry["values"].get(name)) for name in names)] for entry in entries]


def _setting(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:38]}…"


def view(compared: Compared) -> dict[str, Any]:
    """What the templates show."""
    result = compared.result
    names = compared.names
    tones = {name: place % _TONES for place, name in enumerate(names)}
    budget = result["budget"] or {"differences": [], "settings": []}
    return {
        "names": names,
        "tones": tones,
        "result": result,
        "sentence": budget_sentence(result),
        "costs": cost_rows(result),
        "stages": stages_sentence(result),
        "tables": [
            {**table, "pairs": test_rows(table), "verdict": verdict(table), "unknown": unknown(table)}
            for table in result["evaluations"]
        ],
        "differences": difference_rows(budget["differences"], names),
        "settings": difference_rows(budget["settings"], names),
        "learning": _learning(compared),
        "pareto": [_pareto(plot, tones) for plot in result["pareto"]],
        "cards": [row.card() for row in compared.disagreements],
        "origins": origins(result),
        "notes": [f"{name}: {note}" for name, found in result["runs"].items() for note in found["notes"]],
    }


def _learning(compared: Compared) -> list[dict[str, str]]:
    plots = []
    for key, over in _OVER.items():
        curves = [
            Curve(name, found[key], found["loss"], noisy=True, color=place, dashed=place >= _TONES)
            for place, name in enumerate(compared.names)
            if (found := compared.curves.get(name, {})).get(key)
        ]
        if curves:
            plots.append(themed(curves, "loss per target token", over))
    return plots


def _pareto(plot: Mapping[str, Any], tones: Mapping[str, int]) -> dict[str, str]:
    points = [Point(p["run"], p["x"], p["y"], p["low"], p["high"], tones[p["run"]]) for p in plot["points"]]
    line = [(point["x"], point["y"]) for point in front(plot["points"])]
    return in_themes(partial(_figure, points, line, plot)) | {"label": f"{plot['title']} against {plot['label']}"}


def _figure(points: Sequence[Point], line: Sequence[tuple[float, float]], plot: Mapping[str, Any], theme: Theme) -> Any:
    return draw_points(points, line, label=plot["title"], over=plot["label"], theme=theme)
