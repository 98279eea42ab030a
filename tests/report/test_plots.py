"""Plots are files with the same bytes for the same numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mmtune.report.plots import Curve, draw, learning_rate_curves, loss_curves, running_mean, save, themed, write_plots


def rows(count: int = 50) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in range(1, count + 1):
        rates = {"default": 1e-3 / step, "delta_b": 5e-3 / step}
        found.append({"step": step, "loss": 3 / step, "learning_rate": rates})
        if step % 20 == 0:
            found.append({"step": step, "validation_loss": 3.5 / step})
    return found


def test_plots_are_deterministic_png_and_svg(tmp_path: Path) -> None:
    first = write_plots(tmp_path / "a", rows())
    second = write_plots(tmp_path / "b", rows())
    assert [path.name for path in first] == ["loss.png", "loss.svg", "learning_rate.png", "learning_rate.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in first[1].read_bytes()


def test_curves_are_read_from_metrics() -> None:
    training, validation = loss_curves(rows())
    assert (training.name, len(training.steps), validation.name) == ("training", 50, "validation")
    assert list(validation.steps) == [20, 40]
    assert [curve.name for curve in learning_rate_curves(rows())] == ["default", "delta_b"]
    assert learning_rate_curves([{"step": 1, "learning_rate": 0.1}])[0].values == [0.1]
    assert loss_curves([]) == []


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    curve = Curve("loss", [1, 2, 3], [1.0, math.nan, math.inf])
    save(draw([curve, Curve("nothing", [1], [math.nan])], label="loss"), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_equal_curves_are_both_seen() -> None:
    same = [Curve(name, [1, 2], [2.0, 1.0], color=color) for color, name in enumerate("ab")]
    lines = draw([*same, Curve("c", [1, 2], [2.0, 1.5])], label="loss").axes[0].lines
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-"]


def test_long_runs_give_small_files(tmp_path: Path) -> None:
    curve = Curve("loss", range(30_000), [1.0 + index % 7 for index in range(30_000)], noisy=True)
    save(draw([curve], label="loss"), tmp_path / "loss.svg")
    assert (tmp_path / "loss.svg").stat().st_size < 200_000


def test_running_mean() -> None:
    assert running_mean([1, 2, 3, 4], 1) == [1, 1.5, 2.5, 3.5]


def test_pages_get_a_plot_for_light_and_one_for_dark() -> None:
    found = themed(loss_curves(rows()), "loss")
    assert found["light"] != found["dark"]
    assert found["dark"].startswith("data:image/svg+xml;base64,")
