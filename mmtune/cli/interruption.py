"""Verbs that keep what they have done when they are stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mmtune.core.errors import Interruption


@contextmanager
def resumable() -> Iterator[None]:
    """Work that goes on where it stopped: Ctrl-C and SIGTERM end it with the exit code that says so.

    Raises:
        Interruption: A signal arrived.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    before: Any = signal.signal(signal.SIGTERM, _stop) if main_thread else None
    try:
        yield
    except KeyboardInterrupt as error:
        if error.args:  # a second Ctrl-C during a training, which did not let it save
            raise
        fix = "run the same command again: it goes on where it stopped"
        raise Interruption("Interrupted; what was done is kept.", fix=fix) from error
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
