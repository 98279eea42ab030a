"""Signals that ask a run to stop: it saves first, and the same command goes on later."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from mmtune.core.errors import Interruption

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if getattr(signal, name, None) is not None
)


class StopRequest:
    """Catches SIGINT, SIGTERM and SIGUSR1 for the length of a run.

    While ``deferred`` is True a signal only sets ``name``, and the loop saves at its next step. Before and after, a
    signal raises :class:`Interruption` at once. A second Ctrl-C always raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.deferred = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt("again")
        self.name = signal.Signals(number).name
        if not self.deferred:
            raise Interruption(f"Interrupted by {self.name} before the first step.", fix="run the same command again")
