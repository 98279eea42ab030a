"""The numbers of a run: one row a step, and totals that survive an interruption."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from mmtune.train.counts import Counts
from mmtune.train.files import writing


@dataclass
class Totals:
    """What a run has done so far, over all of its interruptions."""

    samples: int = 0
    tokens: int = 0
    targets: int = 0
    rejected: int = 0
    truncated: int = 0
    dropped_turns: int = 0
    seconds: float = 0.0

    def add(self, counts: Counts, seconds: float) -> None:
        """Take over what a step counted."""
        self.samples += counts.samples
        self.tokens += counts.tokens
        self.targets += counts.targets
        self.truncated += counts.truncated
        self.dropped_turns += counts.dropped_turns
        self.seconds += seconds

    def to_json(self) -> dict[str, Any]:
        """A JSON value for a checkpoint."""
        return asdict(self)


@dataclass
class MetricsFile:
    """``metrics.jsonl``: rows are flushed as they come, so that a killed run loses none.

    Args:
        path: None writes nothing, as processes but the first do.
    """

    path: Path | None
    _file: TextIO | None = field(default=None, repr=False)

    def __enter__(self) -> MetricsFile:
        if self.path is not None:
            with writing(self.path):
                self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self.path is not None and self._file is not None:
            with writing(self.path):  # what could not be written is tried again
                self._file.close()
            self._file = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row.

        Raises:
            ResourceError: The disk is full.
        """
        if self.path is None:
            return
        if self._file is None:
            raise RuntimeError("the metrics file is not open")
        with writing(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()


def first_and_last(losses: list[float]) -> dict[str, float | None]:
    """Means over the first and the last max(1, 5 %) steps."""
    if not losses:
        return {"first": None, "last": None}
    count = max(1, math.floor(len(losses) * 0.05))
    return {"first": sum(losses[:count]) / count, "last": sum(losses[-count:]) / count}


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start
