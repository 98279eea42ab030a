"""Work in a process of its own: its events, its result, its errors, and how it is stopped."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mmtune.core.errors import Interruption, NumericalError, ResourceError
from mmtune.train.apart import apart
from mmtune.train.display import Display, SilentDisplay
from mmtune.train.interrupt import StopRequest


class Noted(SilentDisplay):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def start(self, total_steps: int | None, first_step: int = 0) -> None:
        self.told.append((total_steps, first_step))

    def note(self, text: str) -> None:
        self.told.append(text)


def says(display: Display) -> int:
    print("a library talks")
    display.start(3, 1)
    display.note("half")
    return os.getpid()


def fails(display: Display) -> None:
    raise NumericalError("The loss is nan.", fix="lower it")


def ends(display: Display) -> None:
    os._exit(9)


def breaks_off(display: Any) -> None:
    display._stream.write(pickle.dumps(("note", ("half a message",)))[:-9])
    display._stream.flush()
    os._exit(9)


def is_stopped(display: Display) -> None:
    """A signal from outside reaches this process once, and it says itself how it ended."""
    with StopRequest() as stop:
        stop.deferred = True
        os.kill(os.getppid(), signal.SIGTERM)
        while stop.name is None:
            signal.pause()
    raise Interruption(f"stopped by {stop.name}")


def is_cut_short(display: Display) -> None:
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()


def test_events_and_result_come_back() -> None:
    display = Noted()
    assert apart(says, display) != os.getpid()
    assert display.told == [(3, 1), "half"]


def test_errors_come_back_as_they_are() -> None:
    with pytest.raises(NumericalError, match="nan") as caught:
        apart(fails, SilentDisplay())
    assert caught.value.fix == "lower it"


def test_an_end_from_outside_is_told() -> None:
    for work in (ends, breaks_off):
        with pytest.raises(ResourceError, match="exit code 9"):
            apart(work, SilentDisplay())


def test_signals_are_handed_on() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interruption, match="stopped by SIGTERM"):
        apart(is_stopped, SilentDisplay())
    with pytest.raises(Interruption, match="Interrupted by SIGTERM"):
        apart(is_cut_short, SilentDisplay())
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """The caller's own file is not run again in the new process."""
    code = """
        from mmtune.train.apart import apart
        from mmtune.train.display import SilentDisplay
        print(apart(str, SilentDisplay()))
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert "_Remote" in done.stdout, done.stderr
