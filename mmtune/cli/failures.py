"""From any exception to an error with an exit code and a way out, or to a crash report."""

from __future__ import annotations

import datetime
import errno
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError, MMTuneError, ResourceError, UsageError, nearest

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PATH = {errno.ENAMETOOLONG, errno.ELOOP}
_BAD_DISK = {errno.EIO, errno.ESTALE, errno.ENXIO, errno.ETIMEDOUT}
_NO_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
_SPACE_FIX = "free some space, or choose another disk with --output"
_MEMORY_FIX = (
    "use a smaller --batch-size, --set data.max_length=…, --set train.gradient_checkpointing=true or --dtype bfloat16"
)


def explain(error: BaseException, *, verb: str | None, arguments: Sequence[str]) -> MMTuneError | None:
    """The error a user should read for an exception, or None when it is a fault of mmtune itself."""
    if isinstance(error, MMTuneError):
        return error if error.exit_code != MMTuneError.exit_code else None
    if isinstance(error, MemoryError) or _is_memory(error):
        return ResourceError(f"Out of memory: {_first_line(error)}", where=_place(verb), fix=_MEMORY_FIX)
    if isinstance(error, OSError):
        return _explain_os(error, verb)
    if isinstance(error, UnicodeEncodeError):  # what the system gave as bytes that are no text
        message = f"A name cannot be written as text: {error.object[:120]!r}."
        return UsageError(message, where=_place(verb), fix="rename it, or use a UTF-8 locale: LC_ALL=C.UTF-8 mmtune …")
    if "os error 28" in str(error) or "failed writing file" in str(error):  # safetensors and torch hide the errno
        return ResourceError(f"The disk is full: {_first_line(error)}", where=_place(verb), fix=_SPACE_FIX)
    return _explain_network(error) or _explain_usage(error, verb, arguments)


def _explain_os(error: OSError, verb: str | None) -> MMTuneError | None:
    where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else _place(verb)
    if error.errno in _NO_SPACE:
        return ResourceError(f"The disk is full or a limit is reached: {error.strerror}.", where=where, fix=_SPACE_FIX)
    if error.errno in _NO_WRITE or isinstance(error, (PermissionError, NotADirectoryError)):
        fix = "choose a folder that you may write to with --output, or change the rights of this one"
        return ResourceError(f"No access: {error.strerror}.", where=where, fix=fix)
    if isinstance(error, FileExistsError):
        return ResourceError("A file stands where a folder is needed.", where=where, fix="choose another --output")
    if isinstance(error, (FileNotFoundError, IsADirectoryError)):
        return DataError(f"{error.strerror}.", where=where, fix="check the path")
    if error.errno == errno.EMFILE:
        return ResourceError("Too many open files.", where=where, fix="raise the limit: ulimit -n 4096")
    if error.errno in _NO_PATH:
        return UsageError(f"{error.strerror}.", where=where, fix="give another path")
    if error.errno in _BAD_DISK:
        fix = "check the disk or the network share, then run the same command again"
        return ResourceError(f"The disk does not answer as it should: {error.strerror}.", where=where, fix=fix)
    return _explain_network(error)


def _explain_network(error: BaseException) -> MMTuneError | None:
    """An error of the hub client, told by the package of its class, since that package may not be loaded."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if packages & {"huggingface_hub", "httpx", "httpcore", "requests", "urllib3"}:
        fix = "check the name and the network, or give a local folder instead of a hub id"
        return ResourceError(f"The hub did not answer as hoped: {_first_line(error)}", fix=fix)
    return None


def _is_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    # The CPU allocator and the drivers below torch raise plain errors.
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _explain_usage(error: BaseException, verb: str | None, arguments: Sequence[str]) -> MMTuneError | None:
    typer = sys.modules.get("typer")
    if typer is None:
        return None
    click: Any = sys.modules[typer.BadParameter.__module__]  # click's, or the copy that typer carries since 0.20
    if not isinstance(error, click.ClickException):
        return None
    help_line = f"see `mmtune {verb} --help`" if verb else "see `mmtune --help`"
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and context is not None:
        options = [name for param in context.command.params for name in param.opts if name.startswith("--")]
        short = [word for word in arguments if word.startswith(error.option_name)]
        given = short[0].partition("=")[0] if short else error.option_name
        guess = nearest("--" + given.lstrip("-"), options)
        hint = f" Did you mean '{guess}'?" if guess else ""
        return UsageError(
            f"Unknown option '{given}'.{hint}",
            where=f"mmtune {verb}",
            fix=f"write '{guess}', or {help_line}" if guess else help_line,
            allowed=sorted(options),
        )
    message = " ".join(error.format_message().split())
    given = _given_value(error, arguments)
    return UsageError(message + given, where=f"mmtune {verb}", fix=help_line)


def _given_value(error: Any, arguments: Sequence[str]) -> str:
    """The value behind a bad option, since the parser's message does not repeat it."""
    names = getattr(getattr(error, "param", None), "opts", ())
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in names:
            return f" (given: '{value if equals else following}')"
    return ""


def _place(verb: str | None) -> str | None:
    return f"mmtune {verb}" if verb else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def write_crash_report(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write what is needed to report a fault of mmtune; None when no folder takes it."""
    from mmtune import __version__

    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    text = "\n".join(
        (
            f"mmtune {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"command: mmtune {shlex.join(arguments)}",
            "",
            "".join(traceback.format_exception(error)),
        )
    )
    for folder in (tempfile.gettempdir(), "."):
        path = Path(folder) / f"mmtune-crash-{now}-{os.getpid()}.txt"
        try:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return path
    return None
