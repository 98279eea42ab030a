"""How running work looks: a bar with loss, rate and time left on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mmtune.cli.console import Console, clean
from mmtune.cli.tables import cell, duration, numeric, plain_table

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

_WASTE = {"padding": "padding", "data_wait": "data wait"}  # shares of positions and of time
PLAIN_SECONDS = 5.0  # between two plain lines


def training_display(console: Console) -> PlainDisplay:
    """The display that fits the terminal: bars, plain lines, or nothing when quiet."""
    return RichDisplay(console) if console.interactive and not console.quiet else PlainDisplay(console)


class PlainDisplay:
    """One plain line every few seconds; nothing when quiet."""

    def __init__(self, console: Console, *, seconds: float | None = None) -> None:
        self._console = console
        self._seconds = PLAIN_SECONDS if seconds is None else seconds
        self._phase = ""
        self._pace = Pace(None)
        self._unit = "step"
        self._spoken = 0.0
        self._said = False  # work that is over at once needs no line

    def phase(self, name: str) -> None:
        """A part of the work begins ("load", "train", "evaluate")."""
        self._phase = name
        self._console.note(f"{name} ...")

    def label(self, name: str, unit: str) -> None:
        """Name the work and what is counted, without a line of its own."""
        self._phase, self._unit = name, unit

    def start(self, total_steps: int | None, first_step: int = 0) -> None:
        """Steps begin; ``first_step`` is where a resumed run goes on."""
        self._pace = Pace(total_steps, first_step, self._unit)
        self._spoken = time.monotonic()
        self._said = False

    def step(self, row: Mapping[str, Any]) -> None:
        """One step is done; ``row`` is its row of ``metrics.jsonl``."""
        self._pace.advance(row)
        now = time.monotonic()
        if now - self._spoken >= self._seconds or (self._said and self._pace.done == self._pace.total):
            self._spoken, self._said = now, True
            self._console.note(f"{self._phase}: {self._pace.line()}")

    def note(self, text: str) -> None:
        """A remark that stays on the screen."""
        self._console.note(text)

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A small table, for example the components with their parameters."""
        if not self._console.quiet:
            self._console.note(plain_table(title, rows))

    def end(self) -> None:
        """Steps are over."""


class RichDisplay(PlainDisplay):
    """A bar with loss, samples a second and the time left; tables with lines."""

    def __init__(self, console: Console) -> None:
        from rich.console import Console as RichConsole

        super().__init__(console)
        self._rich: RichConsole = RichConsole(file=console.stderr)
        self._bar: Any = None
        self._task: Any = None

    def phase(self, name: str) -> None:
        """A part of the work begins."""
        self.end()
        self._phase = name
        self._rich.rule(_text(name), align="left", style="dim")

    def start(self, total_steps: int | None, first_step: int = 0) -> None:
        """Show the bar."""
        self.end()
        super().start(total_steps, first_step)
        self._bar = _make_bar(self._rich)
        self._task = self._bar.add_task(clean(self._phase), total=total_steps, completed=first_step)
        self._bar.start()
        self._console.printer = self.note  # log lines go above the bar

    def step(self, row: Mapping[str, Any]) -> None:
        """Move the bar."""
        self._pace.advance(row)
        if self._bar is not None:
            self._bar.numbers = f"  {self._pace.numbers()}"
            self._bar.update(self._task, completed=self._pace.done)

    def note(self, text: str) -> None:
        """Print above the bar."""
        self._rich.print(_text(text))

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print a table above the bar."""
        from rich.table import Table

        names = list(rows[0]) if rows else []
        table = Table(title=_text(title), title_justify="left", header_style="bold", border_style="dim")
        for name in names:
            table.add_column(name.replace("_", " "), justify="right" if numeric(rows, name) else "left")
        for row in rows:
            table.add_row(*(_text(cell(row.get(name))) for name in names))
        self._rich.print(table)

    def end(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._console.printer = None
            self._bar.stop()
            self._bar = None


class CountDisplay:
    """What verbs without training steps call now and then: ``(done, total)``, ``(name, done, total)`` or ``(text)``."""

    def __init__(self, display: PlainDisplay, name: str, unit: str) -> None:
        self._display = display
        self._name = name
        self._unit = unit
        self._last: tuple[int, int | None, str] | None = None

    def __call__(self, *news: str | int | None) -> None:
        """Show how far the work is."""
        names = [part for part in news if isinstance(part, str)]
        numbers = [part for part in news if isinstance(part, int)]
        if not numbers:
            self._display.note(" ".join(names))
            return
        total = numbers[1] if len(numbers) > 1 else None
        name = names[0] if names else self._name
        if (numbers[0], total, name) == self._last:
            return
        if self._last is None or (total, name) != self._last[1:]:
            self._display.label(name, self._unit)
            self._display.start(total)
        self._last = (numbers[0], total, name)
        self._display.step({"step": numbers[0]})

    def close(self) -> None:
        """The work is over."""
        self._display.end()


@contextmanager
def progress_display(console: Console, name: str = "rows", unit: str = "row") -> Iterator[CountDisplay]:
    """A bar or plain lines for a counted piece of work, taken down at the end."""
    shown = CountDisplay(training_display(console), name, unit)
    try:
        yield shown
    finally:
        shown.close()


class Pace:
    """Steps done, their rate and the time left."""

    def __init__(self, total: int | None, first: int = 0, unit: str = "step") -> None:
        self.total = total
        self.done = first
        self._unit = unit
        self._first = first
        self._began = time.monotonic()
        self._row: Mapping[str, Any] = {}

    def advance(self, row: Mapping[str, Any]) -> None:
        """Take over one row; rows without a ``step`` count as one step."""
        self._row = row
        self.done = int(row.get("step") or self.done + 1)

    def numbers(self) -> str:
        """Loss, rates, waste and memory, as far as they are known."""
        row, parts = self._row, []
        if row.get("loss") is not None:
            parts.append(f"loss {row['loss']:.4f}")
        rate = row.get("samples_per_second")
        if rate:
            parts.append(f"{rate:.1f} samples/s")
        elif self.done - self._first > 1:
            parts.append(f"{self._rate():.1f} {_per_second(self._unit)}")
        if row.get("tokens_per_second"):
            parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
        parts += [f"{text} {row[key]:.0%}" for key, text in _WASTE.items() if row.get(key) is not None]
        if row.get("memory_bytes"):
            parts.append(f"memory {row['memory_bytes'] / 1e9:.1f} GB")
        return "  ".join(parts)

    def line(self) -> str:
        """One plain line: steps, percent, loss, rate, time left."""
        parts = [f"{self._unit} {self.done}" + (f"/{self.total} ({self.done / self.total:.0%})" if self.total else "")]
        parts.append(self.numbers())
        if self.total and self.done - self._first > 1 and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / self._rate())} left")
        return "  ".join(part for part in parts if part)

    def _rate(self) -> float:
        return max(self.done - self._first, 1) / max(time.monotonic() - self._began, 1e-6)


def _per_second(unit: str) -> str:
    return f"{unit}/s" if unit.isupper() else f"{unit}s/s"


def _make_bar(rich: RichConsole) -> Any:
    """A bar with the time left, and the numbers of the last step in a line of their own."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Left

    class Bar(Progress):
        numbers = ""

        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table(self.tasks)
            yield _text(self.numbers)

    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA", style="dim"),
        Left(),
    )
    return Bar(*columns, console=rich, expand=True)


def _text(value: str) -> Any:
    """Text that rich takes literally: no markup in names that come from files."""
    from rich.text import Text

    return Text(clean(value))
