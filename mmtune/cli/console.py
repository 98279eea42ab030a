"""Where everything that a user sees comes out: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mmtune.core.errors import MMTuneError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # keeps tab and newline; ESC must not reach a terminal


class ReaderGoneError(Exception):
    """The process that reads our stdout has gone (``mmtune … | head``)."""


@dataclass(frozen=True)
class Result:
    """What a verb found: an object for ``--json`` and a short text for people.

    ``text`` None prints nothing, for verbs that have shown their result already.
    """

    values: Mapping[str, Any]
    text: str | None = ""
    exit_code: int = 0


class Console:
    """The two output streams of one command, with its ``--json``, ``--quiet`` and ``--verbose``."""

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False, command: Sequence[str] = ()
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.command = ("mmtune", *command)
        self.silent = False  # one of several processes, another of which speaks for all
        self.partial: Mapping[str, Any] = {}  # what a verb found before it failed; goes beside the error
        self.stdout: TextIO = sys.stdout
        self.stderr: TextIO = sys.stderr
        self.printer: Callable[[str], None] | None = None  # set while a bar is on the screen
        self._handler = _NoticeHandler(self)

    def __enter__(self) -> Console:
        for stream in (self.stdout, self.stderr):
            with contextlib.suppress(AttributeError, ValueError):  # a stream put there by a test or a notebook
                stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
        logger = logging.getLogger("mmtune")
        logger.addHandler(self._handler)
        logger.propagate = False
        self._set_levels()
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("mmtune")
        logger.removeHandler(self._handler)
        logger.propagate = True

    def configure(self, *, as_json: bool, quiet: bool, verbose: bool) -> None:
        """Take over the options once the command line has been parsed."""
        self.as_json, self.quiet, self.verbose = as_json, quiet, verbose
        self._set_levels()

    def _set_levels(self) -> None:
        level = logging.ERROR if self.quiet else logging.DEBUG if self.verbose else logging.INFO
        logging.getLogger("mmtune").setLevel(level)

    @property
    def interactive(self) -> bool:
        """Whether bars and colours make sense on stderr."""
        return self.stderr.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def streams_text(self) -> bool:
        """Whether stdout is a person's terminal that may be given text piece by piece."""
        return self.stdout.isatty() and not self.as_json

    @contextlib.contextmanager
    def only_results_on_stdout(self) -> Iterator[None]:
        """Send what libraries print to stderr, so that stdout carries the result alone."""
        with contextlib.redirect_stdout(self.stderr):
            yield

    def note(self, text: str) -> None:
        """Say something about the work on stderr, unless quiet."""
        if not self.quiet:
            self.err(clean(text))

    def write(self, text: str) -> None:
        """Write a piece of the result to stdout at once (streamed tokens)."""
        self._out(clean(text))

    def result(self, result: Result) -> None:
        """Print the result of the command."""
        if self.as_json and result.values:
            self._out(json.dumps(plain(result.values)) + "\n")
        elif result.text is not None and not self.as_json:
            self._out(clean(result.text) + "\n")

    def error(self, error: MMTuneError, *, cause: BaseException | None = None) -> None:
        """Show an error on stderr, and as JSON on stdout when that was asked for."""
        if self.verbose and cause is not None:
            self.err("".join(traceback.format_exception(cause)))
        self.err(self._error_text(error))
        if self.as_json:
            self._out(json.dumps(plain({"error": error.to_json(), **self.partial})) + "\n")

    def _error_text(self, error: MMTuneError) -> str:
        red, reset = ("\x1b[1;31m", "\x1b[0m") if self.interactive and not os.environ.get("NO_COLOR") else ("", "")
        head = "Interrupted:" if error.code == "interrupted" else "Error:"
        lines = [f"{red}{head}{reset} {clean(error.message)}"]
        if error.allowed and not all(name in error.message for name in error.allowed):
            lines.append(f"  allowed: {clean(', '.join(error.allowed))}")
        lines += [f"  {name}: {clean(value)}" for name, value in (("where", error.where), ("fix", error.fix)) if value]
        return "\n".join(lines)

    def err(self, text: str) -> None:
        """Write a line to stderr."""
        if self.silent:
            return
        if self.printer is not None:
            return self.printer(text)
        with contextlib.suppress(OSError, ValueError):  # a reader that has gone must not change the exit code
            print(text, file=self.stderr, flush=True)

    def _out(self, text: str) -> None:
        if self.silent:
            return
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except BrokenPipeError as error:
            self.drop_stdout()
            raise ReaderGoneError from error
        except OSError:
            self.drop_stdout()
            raise

    def drop_stdout(self) -> None:
        """Point stdout nowhere, so that the interpreter's last flush does not complain again."""
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stdout.fileno())


class _NoticeHandler(logging.Handler):
    """Log records of mmtune as plain lines on stderr, with their level only when it is not information."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.capitalize()}: "
        self._console.err(clean(prefix + record.getMessage()))


def clean(text: str) -> str:
    """Text without control characters, which names and answers from files could carry into a terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


def plain(value: Any) -> Any:
    """A copy that JSON can hold: paths as text, NaN and infinity as null, tuples and sets as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return value.as_posix() if isinstance(value, Path) else str(value)
