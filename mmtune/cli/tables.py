"""Values as short text: table cells, aligned tables, durations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def cell(value: Any) -> str:
    """A table cell: thousands separated, yes and no, short floats."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def numeric(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a column holds numbers only."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return bool(values) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def plain_table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A table as aligned plain text."""
    if not rows:
        return title
    names = list(rows[0])
    lines = [[name.replace("_", " ") for name in names], *([cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    adjust = [str.rjust if numeric(rows, name) else str.ljust for name in names]
    columns = list(zip(adjust, widths, strict=True))
    body = [
        "  ".join(fit(text, width) for text, (fit, width) in zip(line, columns, strict=True)).rstrip() for line in lines
    ]
    return "\n".join(([title] if title else []) + ["  " + line for line in body])


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m 05s or 2h 07m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"
