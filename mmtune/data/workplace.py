"""Where an output is made before it appears: one folder beside it, kept when the work is killed, for one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmtune.core.errors import MMTuneError, ResourceError, UsageError
from mmtune.data.packing import replace_folder

PARTS = "parts"
_JOB = "job.json"
_FORM = 3  # of the parts; a newer form does not go on with older parts
_SPARE_BYTES = 64 << 20
_ROOM = "free some space, then run the same command again; or choose another --output"


@contextmanager
def workplace(target: Path, job: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to write into that becomes ``target`` when all went well.

    When the work is killed or interrupted the folder stays, and the same job finds its parts there again; when it
    fails with an error, it is removed.

    Args:
        job: All that the parts follow from.

    Raises:
        ResourceError: The disk is full or may not be written to.
        UsageError: Another process is at the same output.
    """
    working = target.with_name(f".{target.name}.partial")
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        working.parent.mkdir(parents=True, exist_ok=True)
        Path(lock.lock_file).touch()  # a lock that may not be written looks to filelock like one that is taken
        with lock.acquire(timeout=0):
            _enter(working, job)
            try:
                yield working
            except (MMTuneError, OSError):
                shutil.rmtree(working, ignore_errors=True)
                raise
            (working / _JOB).unlink()
            replace_folder(working, target)
    except Timeout as error:
        raise UsageError(
            "Another process is writing this output.", where=str(target), fix="wait for it, or choose another --output"
        ) from error
    except OSError as error:
        raise ResourceError(
            f"The prepared data cannot be written: {error.strerror or error}.",
            where=str(error.filename or target),
            fix="check free space and permissions, or choose another --output",
        ) from error
    finally:
        if not working.exists():
            Path(lock.lock_file).unlink(missing_ok=True)


def _enter(working: Path, job: Mapping[str, Any]) -> None:
    """Take up the folder of the same job, or begin with an empty one."""
    text = json.dumps({"form": _FORM, **job}, sort_keys=True, default=str)
    path = working / _JOB
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        shutil.rmtree(working, ignore_errors=True)
    (working / PARTS).mkdir(parents=True, exist_ok=True)
    for entry in working.iterdir():
        if entry.is_file():
            entry.unlink()
    path.write_text(text, encoding="utf-8")


def need_space(
    folder: Path,
    num_bytes: int,
    fix: str = "free some space, then run the same command again; or choose another --output",
) -> None:
    """Ask the disk before writing.

    Raises:
        ResourceError: Less is free than is needed.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes + _SPARE_BYTES:
        raise ResourceError(
            f"About {num_bytes / 1e6:,.0f} MB are needed, the disk has {free / 1e6:,.0f} MB left.",
            where=str(folder),
            fix=fix,
        )
