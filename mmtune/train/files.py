"""Writing that survives a crash: whole files or none, and the disk is asked first."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmtune.core.errors import ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def writing(path: Path, option: str = "--output") -> Iterator[None]:
    """Turn a full disk and missing rights into an error with a way out.

    Args:
        option: Of the command line, which says where the path is.

    Raises:
        ResourceError: The disk is full, or the place cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(
                "The disk is full.", where=str(path), fix="free some space, then run the same command again"
            ) from error
        message = f"Cannot write: {error.strerror or error}."
        fix = f"choose a folder that you may write to with {option}"
        raise ResourceError(message, where=str(path), fix=fix) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # safetensors wraps the errors of the operating system
            raise
        raise ResourceError(
            f"Cannot write: {error}.", where=str(path), fix=f"free some space or choose another {option}"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file of this process beside ``path``, which takes its place when all went well, and else is removed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_text(path: Path, text: str, option: str = "--output") -> Path:
    """Replace a small file in one step, and return its path.

    Args:
        option: As for :func:`writing`.

    Raises:
        ResourceError: It cannot be written.
    """
    with (
        writing(path, option),
        replacing(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace") as file,  # names of files may be no text
    ):
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step.

    Raises:
        ResourceError: It cannot be written.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Have a file or a folder reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hash of a file's bytes, as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # another process was faster
                total += os.stat(os.path.join(place, name)).st_size
    return total


def replace_folder(partial: Path, final: Path) -> None:
    """Put a finished folder in place of an older one."""
    umask = os.umask(0)
    os.umask(umask)
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            path.chmod(0o666 & ~umask)  # some libraries write for their own user only
        sync(path)
    sync(partial)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(partial, final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)
