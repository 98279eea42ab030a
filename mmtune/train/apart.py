"""Work in a process of its own: what it takes of memory is neither hidden nor raised by what was done before."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, BinaryIO

from mmtune.core.errors import Interruption, MMTuneError, ResourceError
from mmtune.train.display import Display

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
_RESULT, _ERROR = "result", "error"
_AGAIN = "free memory, then run the same command again: it goes on where it stopped"


def apart(work: Callable[[Display], Any], display: Display, fix: str = _AGAIN) -> Any:
    """Do work in a new process, with its events shown here.

    Args:
        work: Can be pickled; is given a display, and what it returns or raises is returned or raised here. Signals
            are passed on to it.
        fix: What to do where it was ended from outside.

    Raises:
        Interruption: A signal ended the process before it could say so itself.
        ResourceError: It was ended from outside, as for want of memory.
    """
    command = [sys.executable, "-m", "mmtune.train.apart"]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    with started as process, _signals_go_to(process) as passed:
        with suppress(BrokenPipeError):  # it is gone already, which is seen below
            pickle.dump(work, process.stdin)
            process.stdin.close()
        for name, values in _messages(process.stdout):
            if name == _RESULT:
                return values
            if name == _ERROR:
                raise values
            getattr(display, name)(*values)
    if passed:
        raise Interruption(f"Interrupted by {passed[0]}.", fix="run the same command again")
    message = f"The process that trains ended early, with exit code {process.returncode}."
    raise ResourceError(message, fix=fix)


def _messages(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    while True:
        try:
            yield pickle.load(stream)
        except (EOFError, pickle.UnpicklingError):  # ended between two messages, or within one
            return


@contextmanager
def _signals_go_to(process: subprocess.Popen[bytes]) -> Iterator[list[str]]:
    """Hand signals on, each once: the process stands in a session of its own, which no Ctrl-C reaches."""
    passed: list[str] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        passed.append(signal.Signals(number).name)
        process.send_signal(number)

    numbers = [getattr(signal, name) for name in _SIGNALS if name in signal.Signals.__members__]
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, hand_on) for number in numbers} if here else {}
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Remote:
    """A display whose events are shown by another process."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def send(self, name: str, values: Any) -> None:
        """One message."""
        self._stream.write(pickle.dumps((name, values)))
        self._stream.flush()

    def phase(self, name: str) -> None:
        """A part of the work begins."""
        self.send("phase", (name,))

    def start(self, total_steps: int | None, first_step: int = 0) -> None:
        """Steps begin."""
        self.send("start", (total_steps, first_step))

    def step(self, row: Mapping[str, Any]) -> None:
        """One step is done."""
        self.send("step", (dict(row),))

    def note(self, text: str) -> None:
        """A remark."""
        self.send("note", (text,))

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A small table."""
        self.send("table", (title, [dict(row) for row in rows]))

    def end(self) -> None:
        """Steps are over."""
        self.send("end", ())


def _main() -> None:
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not come between the messages
    remote = _Remote(stream)
    try:
        remote.send(_RESULT, pickle.load(sys.stdin.buffer)(remote))
    except BrokenPipeError:  # nobody listens any more
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        with suppress(BrokenPipeError):
            remote.send(_ERROR, _portable(error))


def _portable(error: BaseException) -> BaseException:
    """The error as it can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # errors of libraries may need more to be made than they keep
        return MMTuneError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    _main()
