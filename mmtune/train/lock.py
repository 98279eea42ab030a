"""One process a run directory; the lock of a dead process counts for nothing, wherever that process was."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from mmtune.core.errors import UsageError
from mmtune.train.files import writing

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None  # type: ignore[assignment]

_NAME = ".lock"
_TAKEN = {errno.EACCES, errno.EAGAIN}
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


class RunLock:
    """Held for the length of a run.

    The operating system holds the lock and gives it up with its process, on a shared disk also when that ran on another
    machine; the file says who holds it. Where a disk knows no locks, the process that the file names is asked after,
    which only works on one machine.

    Raises:
        UsageError: A living process holds it.
    """

    _held: ClassVar[set[Path]] = set()  # a process is not refused what it has locked itself, so it remembers

    def __init__(self, folder: Path) -> None:
        self._path = folder.resolve() / _NAME
        self._handle: int | None = None

    def __enter__(self) -> RunLock:
        if self._path in RunLock._held:
            raise self._taken({"pid": os.getpid(), "host": socket.gethostname()})
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "born": _born(os.getpid())}
        with writing(self._path):
            handle = self._locked()
            try:
                os.truncate(handle, 0)
                os.write(handle, json.dumps(holder).encode())
            except BaseException:
                os.close(handle)
                raise
        self._handle = handle
        RunLock._held.add(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            RunLock._held.discard(self._path)
            self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def _locked(self) -> int:
        while True:
            handle = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o666)
            try:
                self._lock(handle)
                if self._is_current(handle):
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # its last holder has just removed it

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self._path.stat())
        except FileNotFoundError:
            return False

    def _lock(self, handle: int) -> None:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks")
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(handle)
            if error.errno in _TAKEN or (error.errno in _NO_LOCKS and _lives(holder)):
                raise self._taken(holder) from error
            if error.errno not in _NO_LOCKS:
                raise

    def _taken(self, holder: dict[str, object]) -> UsageError:
        who = f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= set(holder) else "another process"
        return UsageError(
            f"This run is in use by {who}.", where=str(self._path.parent), fix="wait for it, or give another --output"
        )


def _holder(handle: int) -> dict[str, object]:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _lives(holder: dict[str, object]) -> bool:
    """Whether the process that a lock names is alive here."""
    born = _born(holder.get("pid"))
    return holder.get("host") == socket.gethostname() and born is not None and born == holder.get("born")


def _born(pid: object) -> str | None:
    """When a process started, where the system tells: process ids are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
