"""Which row of the data a given answer belongs to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmtune.data.sample import Sample

if TYPE_CHECKING:
    from mmtune.evaluation.benchmarks.base import Benchmark

Payload = TypeVar("Payload")
ID_KEYS = ("id", "question_id", "image_id", "image", "index")
"""The keys of an answer that may name its row, the surest first."""


def match(
    given: Iterable[tuple[Mapping[str, Any], Payload]], samples: Sequence[Sample], task: Benchmark | None = None
) -> tuple[dict[int, Payload], int]:
    """What was given for each row, and how much of it belongs to no row.

    An answer belongs to the row that has one of its keys under ``extra["names"]``, or else to the row whose id is the
    value of one of its keys. Rows that share a name take answers in order, unless one answer serves them all.

    Args:
        given: Keys and what they come with.
        task: Makes further names of several keys, and says under which one answer serves several rows.
    """
    by_name: dict[tuple[str, str], deque[int]] = {}
    by_id: dict[str, deque[int]] = {}
    for row, sample in enumerate(samples):
        by_id.setdefault(sample.id, deque()).append(row)
        for key, value in sample.extra.get("names", {}).items():
            by_name.setdefault((key, value), deque()).append(row)
    shared = task.shared_names if task else frozenset()
    found: dict[int, Payload] = {}
    ignored = 0
    for keys, payload in given:
        further = task.names_of(keys) if task else {}
        rows = _rows_for(keys, further, by_name, by_id, shared, found)
        for row in rows:
            found[row] = payload
        ignored += not rows
    return found, ignored


def _rows_for(
    keys: Mapping[str, Any],
    further: Mapping[str, str],
    by_name: Mapping[tuple[str, str], deque[int]],
    by_id: Mapping[str, deque[int]],
    shared: frozenset[str],
    taken: Mapping[int, Any],
) -> list[int]:
    named = [(key, str(keys[key])) for key in ID_KEYS if keys.get(key) is not None]
    for name in (*further.items(), *named, *((key, Path(value).stem) for key, value in named if key == "image")):
        if name in by_name:
            rows = by_name[name]
            return [row for row in rows if row not in taken] if name[0] in shared else _next(rows, taken)
    for _, value in named:
        if value in by_id:
            return _next(by_id[value], taken)
    return []


def _next(rows: deque[int], taken: Mapping[int, Any]) -> list[int]:
    while rows and rows[0] in taken:
        rows.popleft()
    return [rows.popleft()] if rows else []
