"""The place a conversion writes to: a temporary neighbour first, the target only when everything is there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from mmtune.convert.damage import read_json
from mmtune.convert.writer import MANIFEST
from mmtune.core.errors import CheckpointError, ResourceError, UsageError

_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes"))
_MARK = ".mmtune-partial-"  # .NAME.mmtune-partial-PID
_SPARE_BYTES = 16 * 2**20  # room for configs, tokenizer and headers


def check_target(target: Path, sources: list[Path], *, overwrite: bool) -> None:
    """Refuse a target that holds something, unless it is a checkpoint that may be replaced.

    Raises:
        UsageError: The target exists without ``overwrite``, is no converted folder, or holds one of the sources.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise UsageError("The output exists and is no folder.", where=str(target), fix="choose another --output")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise UsageError(
            "The output folder exists.", where=str(target), fix="add --overwrite or choose another --output"
        )
    resolved = target.resolve()
    for source in sources:
        if source.resolve() == resolved or resolved in source.resolve().parents:
            raise UsageError(
                "The output would overwrite its own source.", where=str(target), fix="choose another --output"
            )
    if not _is_converted(target):
        raise UsageError(
            "The output folder holds something other than an mmtune checkpoint; --overwrite does not delete that.",
            where=str(target),
            fix="choose another --output, or remove the folder yourself",
        )


def _is_converted(folder: Path) -> bool:
    if (folder / MANIFEST).is_file():
        return True
    try:
        return read_json(folder / "config.json").get("model_type") == "mmtune"
    except CheckpointError:
        return False


def check_space(parent: Path, num_bytes: int) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        ResourceError: Names the bytes needed and the bytes free.
    """
    free = shutil.disk_usage(_existing(parent)).free
    if free < num_bytes + _SPARE_BYTES:
        raise ResourceError(
            f"The converted folder needs {readable(num_bytes + _SPARE_BYTES)}, the disk has {readable(free)} free.",
            where=str(parent),
            fix="free space, or choose an --output on another disk",
        )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """A temporary folder beside the target; it becomes the target at the end, or disappears when anything fails.

    Raises:
        ResourceError: The disk is full or may not be written.
    """
    parent = target.parent
    created = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    temporary = parent / f".{target.name}{_MARK}{os.getpid()}"
    done = False
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        temporary.mkdir()
        yield temporary
        _replace(target, temporary)
        done = True
    except OSError as error:
        raise _translate(error, target) from error
    finally:
        if not done:
            shutil.rmtree(temporary, ignore_errors=True)
            for folder in created:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


def _translate(error: OSError, target: Path) -> ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            "The disk is full; nothing is left behind.", where=str(target), fix="free space and try again"
        )
    fix = "choose an --output that can be written"
    return ResourceError(f"Cannot write: {error.strerror or error}.", where=str(error.filename or target), fix=fix)


def _replace(target: Path, temporary: Path) -> None:
    """Put the finished folder in place; an old one is moved aside first and deleted last."""
    old = temporary.with_name(temporary.name + "-old")
    if target.exists():
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Delete partial folders of this target whose process is gone (kill -9, power loss)."""
    for folder in target.parent.glob(f".{escape(target.name)}{_MARK}*"):
        number = folder.name.rpartition("-")[2]
        if number.isdigit() and not _alive(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def readable(num_bytes: int) -> str:
    """``1.5 MB`` for 1,500,000 bytes."""
    unit, name = next(((size, name) for size, name in _UNITS if num_bytes >= size), _UNITS[-1])
    return f"{num_bytes / unit:.1f} {name}"
