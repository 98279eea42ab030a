"""What a running training shows: plain lines without a terminal, a bar on one, nothing when quiet."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest

from mmtune.cli.console import Console
from mmtune.cli.display import PlainDisplay, RichDisplay, progress_display, training_display
from mmtune.cli.tables import cell, duration, plain_table

ROWS = [
    {"component": "llm [x]", "parameters": 3_400_000, "trainable": False, "learning_rate": None},
    {"component": "vlora", "parameters": 512, "trainable": True, "learning_rate": 2e-4},
]


WASTE = {"tokens_per_second": 1234.0, "padding": 0.07, "data_wait": 0.01, "memory_bytes": 2.5e9}


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def play(display: Any) -> None:
    display.phase("train")
    display.table("Components", ROWS)
    display.start(100, 40)
    for step in range(41, 101):
        display.step({"step": step, "loss": 1.5, "samples_per_second": 20.0, **WASTE})
        if step == 50:
            logging.getLogger("mmtune.train").info("a log line")
    display.note("a note")
    display.end()


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        assert type(training_display(console)) is PlainDisplay
        play(PlainDisplay(console, seconds=0))
    shown = capsys.readouterr().err
    numbers = "loss 1.5000  20.0 samples/s  1,234 tokens/s  padding 7%  data wait 1%  memory 2.5 GB"
    assert f"train: step 100/100 (100%)  {numbers}" in shown
    assert "  llm [x]     3,400,000  no" in shown
    assert "a log line\n" in shown
    assert shown.count("train: step") == 60


def test_plain_lines_are_few_and_none_for_quick_work(capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        play(PlainDisplay(console, seconds=3600))
    assert "train: step" not in capsys.readouterr().err


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(quiet=True) as console:
        play(training_display(console))
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    console = Console()
    console.stderr = Terminal()
    with console:
        display = training_display(console)
        assert type(display) is RichDisplay
        play(display)
    shown = console.stderr.getvalue()
    for words in ("100/100", "loss 1.5000", "20.0 samples/s", "llm [x]", "a log line", "a note", "ETA"):
        assert words in shown


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console()
    console.stderr = Terminal()
    display = RichDisplay(console)
    display.table("Components", ROWS)
    assert "\x1b[3" not in console.stderr.getvalue()


def test_counted_work(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmtune.cli.display.PLAIN_SECONDS", 0.0)
    with Console() as console, progress_display(console, "rows") as progress:
        progress("reading")
        for done in range(3):
            progress(done + 1, 3)
        progress("shards", 1, 1)
    shown = capsys.readouterr().err
    assert shown.startswith("reading\nrows: row 1/3 (33%)")
    assert "rows: row 3/3 (100%)" in shown
    assert "shards: row 1/1 (100%)" in shown


def test_small_texts() -> None:
    assert [duration(value) for value in (0.4, 59, 125, 7500)] == ["0s", "59s", "2m 05s", "2h 05m"]
    assert [cell(value) for value in (True, 12345, 0.123456, None, "x")] == ["yes", "12,345", "0.1235", "", "x"]
    assert plain_table("t", []) == "t"
