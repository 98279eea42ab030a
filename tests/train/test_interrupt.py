"""Signals: at once before the first step, at the next step later, and hard the second time."""

from __future__ import annotations

import os
import signal

import pytest

from mmtune.core.errors import Interruption
from mmtune.train.interrupt import StopRequest


def test_before_the_first_step_a_signal_stops_at_once() -> None:
    with pytest.raises(Interruption, match="SIGTERM") as caught, StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_while_steps_run_it_is_only_noted_and_a_second_ctrl_c_is_hard() -> None:
    with StopRequest() as stop:
        stop.deferred = True
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
