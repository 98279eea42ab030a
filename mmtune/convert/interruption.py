"""Ctrl-C and SIGTERM during a conversion leave nothing behind. Imports nothing heavy, so that it covers imports."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from mmtune.core.errors import Interruption, Stopped


@contextmanager
def interruptible(target: Path) -> Iterator[None]:
    """Turn SIGINT and SIGTERM inside the block into one clean error; a second Ctrl-C ends the process at once.

    Libraries turn the exception of a signal into errors of their own (an import that failed), hence the flag.

    Raises:
        Interruption: One of them arrived, and everything was cleaned up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        arrived = True
        _restore(previous)
        raise Stopped(signal.Signals(number).name)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, interrupt)
    try:
        yield
    except BaseException as error:
        if arrived or isinstance(error, KeyboardInterrupt):
            raise Interruption(
                "The conversion was interrupted; nothing is left behind.",
                where=str(target),
                fix="run the same command again",
            ) from error
        raise
    finally:
        _restore(previous)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)
