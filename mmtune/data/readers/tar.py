"""WebDataset tars: members with one key (``000.jpg``, ``000.txt``, ``000.json``) are a row; nothing is unpacked.

Source:
    The WebDataset convention: the key of a member is its path up to the first dot of the file's name.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mmtune.core.errors import DataError
from mmtune.data.messages import RowError
from mmtune.data.readers import Reader
from mmtune.data.reading import RawRow

_PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"}
_SOUNDS = {"wav", "flac", "mp3", "ogg"}
_VIDEOS = {"mp4", "webm", "mkv", "avi"}
_TEXTS = {"txt", "text", "caption"}
_TALKS = {"conversations", "messages"}
_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_BLOCK = tarfile.BLOCKSIZE


def _claims(path: Path) -> bool:
    return path.name.endswith((".tar", ".tar.gz", ".tgz")) and path.is_file()


def _rows(path: Path) -> Iterator[RawRow]:
    index, row = 0, _Row("")
    try:
        with _unpacked(path) as file, tarfile.open(fileobj=(whole := _Whole(file)), mode="r|") as tar:
            for member in tar:
                key, _, ending = _split(member.name)
                if not member.isfile() or not ending:
                    continue
                if key != row.key:
                    if row.key:
                        yield RawRow(index, index + 1, row.value())
                        index += 1
                    row = _Row(key)
                content = tar.extractfile(member)
                row.add(ending, content.read() if content is not None else b"")
            whole.check_end()
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"The tar breaks off or is damaged after row {index + bool(row.key)}: {error}",
            where=f"{path}:{index + 1}",
            fix="copy it again",
        ) from error
    if row.key:
        yield RawRow(index, index + 1, row.value())


def _unpacked(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        begins = file.read(2)
    opened: IO[bytes] = _PACKED.get(begins, open)(path, "rb")
    return opened


class _Whole:
    """A tar as a stream that knows whether it was read to its proper end: it may break off between two members."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._last = file, b""

    def read(self, size: int) -> bytes:
        """The next bytes."""
        content = self._file.read(size)
        self._last = (self._last + content)[-_BLOCK:]
        return content

    def check_end(self) -> None:
        """Read what is left, at the end of which sums of packed files are checked.

        Raises:
            TarError: The blocks of zeros are missing that end every tar.
        """
        while self.read(1 << 20):
            pass
        if self._last != bytes(_BLOCK):
            raise tarfile.ReadError("the mark at its end is missing")


def _split(name: str) -> tuple[str, str, str]:
    path = PurePosixPath(name)
    stem, dot, ending = path.name.partition(".")
    return str(path.parent / stem), dot, ending.lower()


class _Row:
    """The members of one key."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._members: dict[str, bytes] = {}
        self._problem: RowError | None = None

    def add(self, ending: str, content: bytes) -> None:
        if ending in self._members:
            self._problem = RowError(
                "tar_member_twice", f"'{self.key}.{ending}' is in the tar twice.", fix="give every row a key of its own"
            )
        self._members[ending] = content

    def value(self) -> dict[str, Any] | RowError:
        """The row: what its JSON says, its text as ``caption`` and its media under the name of their kind."""
        try:
            if self._problem is not None:
                raise self._problem
            return self._value()
        except RowError as error:
            return error

    def _value(self) -> dict[str, Any]:
        row: dict[str, Any] = {"id": self.key}
        if "json" in self._members:
            row |= _parsed(self._members["json"], self.key)
        talks = bool(_TALKS & set(row))
        for ending, content in self._members.items():
            kind = ending.rpartition(".")[2]
            if kind in _PICTURES:
                row["image"] = [*row["image"], content] if "image" in row and talks else [content]
            elif kind in _SOUNDS:
                row["audio"] = content
            elif kind in _VIDEOS:
                row["video"] = content
            elif kind in _TEXTS:
                row["caption"] = _decoded(content, f"{self.key}.{ending}")
        if not talks:
            row.setdefault("image", None)
            row.setdefault("caption", None)
        return row


def _parsed(content: bytes, key: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RowError("tar_bad_json", f"'{key}.json' is no JSON: {error}", fix="write it again") from error
    if not isinstance(found, dict):
        raise RowError("tar_bad_json", f"'{key}.json' holds no object.", fix="write an object")
    return {name: value for name, value in found.items() if name not in ("image", "key")}


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError("tar_bad_text", f"'{name}' is no UTF-8 text.", fix="write it as UTF-8") from error


READER = Reader(_claims, _rows)
