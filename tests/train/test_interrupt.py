"""Signals: at once before the first step, at the next step later, and hard only at a second Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from mmtune.core.errors import Stopped
from mmtune.train.interrupt import StopRequest


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_before_the_first_step_a_signal_stops_at_once() -> None:
    with pytest.raises(Stopped, match="SIGTERM") as caught, StopRequest():
        send(signal.SIGTERM)
    assert caught.value.interruption().exit_code == 75
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_while_steps_run_it_is_only_noted_and_a_second_ctrl_c_is_hard() -> None:
    with StopRequest() as stop:
        stop.deferred = True
        send(signal.SIGINT)
        assert stop.name == "SIGINT"
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match="again"):
            send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_library_that_catches_everything_does_not_catch_it() -> None:
    with pytest.raises(Stopped), StopRequest(), contextlib.suppress(Exception):
        send(signal.SIGUSR1)


def test_after_the_first_signal_others_do_not_disturb_the_end() -> None:
    with contextlib.ExitStack() as ending:
        ending.enter_context(pytest.raises(Stopped, match="SIGTERM"))
        ending.enter_context(StopRequest())
        ending.callback(send, signal.SIGUSR1)
        ending.callback(send, signal.SIGTERM)
        send(signal.SIGTERM)


def test_inner_and_outer_know_of_each_others_signals() -> None:
    with StopRequest() as outer:
        with pytest.raises(Stopped), StopRequest():
            send(signal.SIGTERM)
        assert outer.name == "SIGTERM"
        send(signal.SIGTERM)
        with StopRequest() as inner:
            assert inner.name == "SIGTERM"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_is_lost_in_a_finaliser_is_remembered() -> None:
    class Finalised:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    with StopRequest() as stop:
        Finalised()
    assert stop.name == "SIGTERM"


def test_the_exit_code_holds_when_the_signal_came_while_text_was_executed() -> None:
    """As in imports that make classes: after a plain KeyboardInterrupt there, Python ends the process by SIGINT."""
    code = """if True:
        import os, signal, sys
        from mmtune.core.errors import Stopped
        from mmtune.train.interrupt import StopRequest
        try:
            with StopRequest():
                exec("os.kill(os.getpid(), signal.SIGTERM)")
        except Stopped:
            sys.exit(75)
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 75
