"""The numbers of a run: one row a step, and totals that survive an interruption."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from mmtune.train.counts import Counts
from mmtune.train.files import writing

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
        if self._file is not None:
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


def restart_peak(device: torch.device) -> None:
    """Count the most memory used from now on; where a system cannot, it stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # Linux alone has it, and not in every container
        _CLEAR_REFS.write_text("5", encoding="ascii")


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used since :func:`restart_peak`: of the accelerator where there is one, else of this process.

    Source:
        proc(5): ``VmHWM``, and the value 5 of ``clear_refs``. A new process has the ``ru_maxrss`` of its parent.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource  # not on every system

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak if sys.platform == "darwin" else peak * 1024)


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start
