"""What a score costs: which runs no other run beats on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PRICES = {
    "prefill_flops": "operations to read a picture and a question",
    "trainable_parameters": "trained parameters",
}


def pareto(table: Mapping[str, Any], costs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each price the runs of a ranked table with price and score, and whether they are on the front.

    Args:
        table: As the JSON has it.
        costs: Figures by name of the run.
    """
    if not table["ranked"]:
        return []
    found = []
    for price, label in PRICES.items():
        points = [
            {"run": row["run"], "x": costs[row["run"]].get(price), "y": row["value"], **_interval(row)}
            for row in table["rows"]
        ]
        points = [point for point in points if point["x"] and point["y"] is not None]
        if len(points) > 1:
            better = bool(table["higher_is_better"])
            for point in points:
                point["front"] = not any(_beats(other, point, better) for other in points)
            title = f"{table['title']}: {table['score']}"
            found.append({"title": title, "price": price, "label": label, "points": points})
    return found


def _interval(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"low": row["low"], "high": row["high"]}


def _beats(other: Mapping[str, Any], one: Mapping[str, Any], higher_is_better: bool) -> bool:
    """At least as good on both, and better on one."""
    gain = (other["y"] - one["y"]) * (1 if higher_is_better else -1)
    return bool(gain >= 0 and other["x"] <= one["x"] and (gain > 0 or other["x"] < one["x"]))


def front(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points of the front from cheap to dear."""
    return sorted((point for point in points if point["front"]), key=lambda point: point["x"])
