"""Signals that ask for an end: the work saves first, and the same command goes on later. Imports nothing heavy."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import ClassVar

from mmtune.core.errors import Stopped

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if getattr(signal, name, None) is not None
)


class StopRequest:
    """Catches SIGINT, SIGTERM and SIGUSR1 for the length of some work.

    While ``deferred`` is True a signal only sets ``name``, and a run saves at its next step. Before and after, a signal
    raises :class:`Stopped` at once; where that gets lost (Python drops what a finaliser raises), ``name`` still tells.
    A second Ctrl-C always raises KeyboardInterrupt, other signals after the first change nothing.
    """

    _innermost: ClassVar[StopRequest | None] = None

    def __init__(self) -> None:
        self.name: str | None = None
        self.deferred = False
        self._before: dict[int, object] = {}
        self._outer: StopRequest | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._outer = StopRequest._innermost
            self.name = self._outer.name if self._outer is not None else None
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
            StopRequest._innermost = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._before:
            return
        StopRequest._innermost = self._outer
        if self._outer is not None:
            self._outer.name = self.name
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt("again")
            return
        self.name = signal.Signals(number).name
        if not self.deferred:
            raise Stopped(self.name)
