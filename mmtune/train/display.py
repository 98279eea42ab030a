"""What a run tells while it goes; the command line draws it, everybody else gets log lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

_LOG = logging.getLogger("mmtune.train")


class Display(Protocol):
    """The events of a run, in order: phases, the first step, every step, and the end."""

    def phase(self, name: str) -> None:
        """A part of the work begins."""

    def start(self, total_steps: int | None, first_step: int = 0) -> None:
        """Steps begin; ``first_step`` is how many are done already."""

    def step(self, row: Mapping[str, Any]) -> None:
        """One step is done; ``row`` is its row of ``metrics.jsonl``."""

    def note(self, text: str) -> None:
        """A remark that a person should read."""

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A small table."""

    def end(self) -> None:
        """Steps are over."""


class LoggingDisplay:
    """One log line every few seconds."""

    def __init__(self, *, seconds: float = 5.0) -> None:
        self._seconds = seconds
        self._said = 0.0
        self._total: int | None = None

    def phase(self, name: str) -> None:
        """Log the part of the work that begins."""
        _LOG.info("%s", name)

    def start(self, total_steps: int | None, first_step: int = 0) -> None:
        """Remember how many steps there will be."""
        self._total = total_steps
        self._said = time.monotonic()
        _LOG.info("steps %d to %s", first_step + 1, total_steps)

    def step(self, row: Mapping[str, Any]) -> None:
        """Log a step now and then."""
        now = time.monotonic()
        if now - self._said < self._seconds:
            return
        self._said = now
        loss = "none" if row["loss"] is None else f"{row['loss']:.4f}"
        rate = row.get("samples_per_second", 0.0)
        waste = f"padding {row.get('padding', 0.0):.0%}  data wait {row.get('data_wait', 0.0):.0%}"
        _LOG.info("step %s/%s  loss %s  %.1f samples/s  %s", row["step"], self._total, loss, rate, waste)

    def note(self, text: str) -> None:
        """Log a remark."""
        _LOG.info("%s", text)

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log a table, a line a row."""
        for row in rows:
            _LOG.info("%s: %s", title, "  ".join(f"{key} {value}" for key, value in row.items()))

    def end(self) -> None:
        """Nothing to tidy up."""


class SilentDisplay:
    """Says nothing: for the processes whose first one speaks for all."""

    def phase(self, name: str) -> None:
        """Nothing."""

    def start(self, total_steps: int | None, first_step: int = 0) -> None:
        """Nothing."""

    def step(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class RecordedDisplay:
    """Passes every event on and keeps its words in a run's ``log.txt``."""

    def __init__(self, inner: Display, write: Any) -> None:
        self._inner = inner
        self._write = write
        self.phase_name = ""

    def phase(self, name: str) -> None:
        """Pass on and log."""
        self.phase_name = name
        self._write(name)
        self._inner.phase(name)

    def start(self, total_steps: int | None, first_step: int = 0) -> None:
        """Pass on and log."""
        self._write(f"steps {first_step + 1} to {total_steps}")
        self._inner.start(total_steps, first_step)

    def step(self, row: Mapping[str, Any]) -> None:
        """Pass on; the numbers are in ``metrics.jsonl``."""
        self._inner.step(row)

    def note(self, text: str) -> None:
        """Pass on and log."""
        self._write(text)
        self._inner.note(text)

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Pass on and log."""
        for row in rows:
            self._write(f"{title}: " + "  ".join(f"{key}={value}" for key, value in row.items()))
        self._inner.table(title, rows)

    def end(self) -> None:
        """Pass on."""
        self._inner.end()
