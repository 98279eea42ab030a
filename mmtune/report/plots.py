"""Learning curves as PNG and SVG: the same bytes for the same numbers."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

Theme = Literal["light", "dark"]
_INK: Mapping[Theme, Mapping[str, Any]] = {
    "light": {
        "ground": "#ffffff",
        "text": "#3c4350",
        "grid": "#e4e6ea",
        "series": ("#2563c9", "#c2570c", "#15803d", "#7e3aa8"),
    },
    "dark": {
        "ground": "#14171c",
        "text": "#c3c8d1",
        "grid": "#333943",
        "series": ("#79a9f5", "#f0984f", "#62c98a", "#c79be6"),
    },
}
_GROUND: Mapping[Theme, str] = {"light": "#ffffff", "dark": "#14171c"}
_DECADE = 10  # a range wider than this is drawn on a logarithmic axis
_STYLE: Any = {
    "svg.hashsalt": "mmtune",  # ids inside an SVG are random without it
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot.

    Args:
        steps: Where the values were taken.
        values: One value a step; those that are not finite are left out.
        noisy: Draw the values faintly and their running mean clearly.
        marked: Put a dot on every value, for values that are far apart.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    noisy: bool = False
    marked: bool = False
    dashed: bool = False
    color: int = 0


def draw(
    curves: Sequence[Curve],
    *,
    label: str,
    theme: Theme = "light",
    size: tuple[float, float] = (4.5, 2.6),
    over: str = "step",
) -> Figure:
    """Draw curves over the training step, or what ``over`` names; the caller saves it, or takes :func:`data_uri`.

    A curve that lies on an earlier one is dashed, so that both are seen.
    """
    ink = _INK[theme]
    with rc_context(_STYLE):
        figure, axes = _empty(label, over, ink, size)
        for place, curve in enumerate(curves):
            hides = any(curve.values == other.values for other in curves[:place])
            _draw_curve(axes, replace(curve, dashed=True) if hides else curve, ink)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=over == "step"))
        if over != "step":
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.margins(x=0.01)
        if len(curves) > 1:
            axes.legend(frameon=False, labelcolor=ink["text"], fontsize=8.5, handlelength=1.4)
    return figure


def _empty(label: str, over: str, ink: Mapping[str, Any], size: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.set_xlabel(over, color=ink["text"])
    axes.set_title(label, color=ink["text"], loc="left", fontsize=9)
    axes.tick_params(colors=ink["text"], which="both")
    axes.grid(axis="y", color=ink["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    for spine in axes.spines.values():
        spine.set_color(ink["grid"])
    return figure, axes


def short_number(value: float) -> str:
    """A number for an axis: ``40k``, ``1.5M``, ``0.4T``."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


_MARKERS = (("o", 12.5), ("s", 10.5), ("D", 8.0), ("^", 9.0))
"""Shapes with sizes in points: of those at one place, every later one leaves a rim of the earlier ones in sight."""


@dataclass(frozen=True, slots=True)
class Point:
    """One thing in a plot of price and value; ``low`` and ``high`` bound the value's interval."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    color: int = 0


def draw_points(
    points: Sequence[Point],
    line: Sequence[tuple[float, float]],
    *,
    label: str,
    over: str,
    theme: Theme = "light",
    size: tuple[float, float] = (4.5, 2.9),
) -> Figure:
    """Draw points with their intervals, and a line through those of a front; wide ranges get a logarithmic axis."""
    ink = _INK[theme]
    with rc_context(_STYLE):
        figure, axes = _empty(label, over, ink, size)
        if len(line) > 1:
            axes.plot(*zip(*line, strict=True), color=ink["text"], linewidth=0.9, linestyle=":", zorder=1)
        for point in sorted(points, key=lambda point: point.color):
            color = ink["series"][point.color % len(ink["series"])]
            if point.low is not None and point.high is not None:
                axes.plot([point.x, point.x], [point.low, point.high], color=color, alpha=0.5, linewidth=1.4, zorder=2)
            marker, size = _MARKERS[point.color % len(_MARKERS)]
            shape = {"marker": marker, "markersize": size}
            shape |= {"markeredgecolor": _GROUND[theme], "markeredgewidth": 0.9, "zorder": 3 + point.color}
            axes.plot([point.x], [point.y], linestyle="none", color=color, label=point.name, **shape)
        values = [point.x for point in points]
        if min(values) > 0 and max(values) / min(values) > _DECADE:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15, y=0.15)
        axes.legend(
            frameon=False, labelcolor=ink["text"], fontsize=8.5, handlelength=0.8, loc="upper center",
            bbox_to_anchor=(0.5, -0.24), ncols=min(4, len(points)), columnspacing=1.2,
        )  # fmt: skip
    return figure


def _draw_curve(axes: Any, curve: Curve, ink: Mapping[str, Any]) -> None:
    points = [(x, y) for x, y in zip(curve.steps, curve.values, strict=True) if math.isfinite(y)]
    if not points:
        return
    steps, values = zip(*points, strict=True)
    color = ink["series"][curve.color % len(ink["series"])]
    style = {"color": color, "linestyle": "--" if curve.dashed else "-", "linewidth": 1.6, "label": curve.name}
    if curve.marked or len(points) == 1:
        axes.plot(steps, values, marker="o", markersize=4, **style)
    elif curve.noisy and len(points) > 20:
        smooth = running_mean(values, max(5, len(values) // 40))
        axes.plot(*_thin(steps, values), color=color, alpha=0.25, linewidth=0.8)
        axes.plot(*_thin(steps, smooth), **style)
    else:
        axes.plot(*_thin(steps, values), **style)


def _thin(steps: Sequence[float], values: Sequence[float], most: int = 600) -> tuple[list[float], list[float]]:
    """Every n-th point and the last one: a plot has no room for more, and its file should stay small."""
    stride = max(1, len(steps) // most)
    kept = sorted({*range(0, len(steps), stride), len(steps) - 1})
    return [steps[index] for index in kept], [values[index] for index in kept]


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value with up to ``width`` values before it."""
    return [sum(values[max(0, end - width) : end + 1]) / (end + 1 - max(0, end - width)) for end in range(len(values))]


def save(figure: Figure, path: Path) -> None:
    """Write a figure as ``.png`` or ``.svg``, without a date in it."""
    path.write_bytes(_bytes(figure, path.suffix.lstrip(".")))


def data_uri(figure: Figure) -> str:
    """A figure as an SVG that stands inside an HTML file."""
    return "data:image/svg+xml;base64," + base64.b64encode(_bytes(figure, "svg")).decode("ascii")


def _bytes(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        if kind == "svg":
            FigureCanvasSVG(figure).print_figure(buffer, format="svg", metadata={"Date": None, "Creator": None})
        else:
            FigureCanvasAgg(figure).print_figure(
                buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None}
            )
    return buffer.getvalue()


def themed(curves: Sequence[Curve], label: str, over: str = "step") -> dict[str, str]:
    """The same plot as data URIs for light and dark pages."""
    return in_themes(lambda theme: draw(curves, label=label, theme=theme, over=over)) | {"label": label}


def in_themes(made: Callable[[Theme], Figure]) -> dict[str, str]:
    """A figure for light and one for dark pages, as data URIs."""
    themes: tuple[Theme, Theme] = ("light", "dark")
    return {theme: data_uri(made(theme)) for theme in themes}


def loss_curves(rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Training and validation loss from the rows of ``metrics.jsonl``."""
    curves = [Curve("training", *_series(rows, "loss"), noisy=True)]
    validation = _series(rows, "validation_loss")
    if validation[0]:
        curves.append(Curve("validation", *validation, marked=True, color=1))
    return curves if curves[0].steps else curves[1:]


def learning_rate_curves(rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The learning rate, one curve a role when there are several."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        given = row.get("learning_rate")
        rates = given if isinstance(given, Mapping) else {"": given} if isinstance(given, int | float) else {}
        for name, rate in rates.items():
            steps, values = found.setdefault(str(name), ([], []))
            steps.append(float(row["step"]))
            values.append(float(rate))
    return [Curve(name, *series, color=index) for index, (name, series) in enumerate(found.items())]


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [(float(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]
    return [step for step, _ in points], [value for _, value in points]


def write_plots(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write ``loss`` and ``learning_rate`` as PNG and SVG into a folder; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, label, curves in (
        ("loss", "loss per target token", loss_curves(rows)),
        ("learning_rate", "learning rate", learning_rate_curves(rows)),
    ):
        if curves:
            for kind in ("png", "svg"):
                path = folder / f"{name}.{kind}"
                save(draw(curves, label=label), path)
                written.append(path)
    return written
