"""One process a run directory; the lock of a dead process counts for nothing."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import TracebackType

from mmtune.core.errors import UsageError
from mmtune.train.files import writing

_NAME = ".lock"


class RunLock:
    """Held for the length of a run.

    Raises:
        UsageError: A living process of this machine holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME

    def __enter__(self) -> RunLock:
        for _ in range(3):
            try:
                handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                self._remove_dead()
                continue
            except OSError:
                with writing(self._path):
                    raise
            with os.fdopen(handle, "w") as file:
                json.dump({"pid": os.getpid(), "host": socket.gethostname(), "born": _born(os.getpid())}, file)
            return self
        raise self._taken("another process")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)

    def _remove_dead(self) -> None:
        try:
            holder = json.loads(self._path.read_text())
            pid, host, born = int(holder["pid"]), str(holder["host"]), holder["born"]
        except (OSError, ValueError, KeyError, TypeError):
            self._path.unlink(missing_ok=True)  # a process died between making and filling it
            return
        if host == socket.gethostname() and not (_alive(pid) and _born(pid) == born):
            self._path.unlink(missing_ok=True)
            return
        raise self._taken(f"process {pid} on {host}")

    def _taken(self, holder: str) -> UsageError:
        return UsageError(
            f"This run is in use by {holder}.",
            where=str(self._path.parent),
            fix="wait for it, or give another --output",
        )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _born(pid: int) -> str | None:
    """When a process started, where the system tells: process ids are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
