"""Writes a converted folder: tensor by tensor into a temporary folder, a manifest last, then one rename."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.convert.tensors import SAFETENSORS_DTYPES, num_elements
from mmtune.core.errors import ShapeError, UsageError

MANIFEST = "MANIFEST.json"
_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}
_PIECE = 2**18  # bytes written and hashed at a time: they stay in the processor's cache
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to write: its name and form, and how to get its values when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of the values as written."""
        return num_elements(self.shape) * self.dtype.itemsize


def parse_size(text: str) -> int:
    """Bytes of a size as typed: ``5GB``, ``500MB``, ``2GiB``.

    Raises:
        UsageError: No number with a unit of bytes.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    size = int(float(match.group(1)) * _UNITS[match.group(2) or ""]) if match else 0
    if size <= 0:
        raise UsageError(f"'{text}' is no size.", where="--max-shard-size", fix="write a size such as 5GB or 500MB")
    return size


def plan_shards(entries: Sequence[Entry], max_bytes: int) -> list[list[Entry]]:
    """Entries in order, split so that a shard stays under ``max_bytes`` unless one tensor alone is larger."""
    shards: list[list[Entry]] = []
    filled = 0
    for entry in entries:
        if not shards or (filled + entry.num_bytes > max_bytes and shards[-1]):
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.num_bytes
    return shards


def write_pickle(
    path: Path,
    entries: Sequence[Entry],
    wrap: Callable[[dict[str, Tensor]], Any] | None,
    advance: Callable[[int], None],
) -> None:
    """Write all tensors with ``torch.save``, for formats that are pickles; they are in memory together."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {entry.name: entry.read().to(entry.dtype).contiguous().clone() for entry in entries}
    torch.save(state if wrap is None else wrap(state), path)
    advance(sum(entry.num_bytes for entry in entries))


def write_weights(
    folder: Path, stem: str, entries: Sequence[Entry], max_bytes: int, advance: Callable[[int], None]
) -> dict[Path, str]:
    """Write ``stem.safetensors``, or ``stem-00001-of-0000N.safetensors`` with an index when it takes several files.

    Returns:
        The weight files with their sha256, taken while writing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(entries, max_bytes)
    if len(shards) <= 1:
        path = folder / f"{stem}.safetensors"
        return {path: _write_file(path, entries, advance)}
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    digests = {
        folder / name: _write_file(folder / name, shard, advance) for name, shard in zip(names, shards, strict=True)
    }
    weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
    total = sum(entry.num_bytes for entry in entries)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / f"{stem}.safetensors.index.json", index)
    return digests


def _write_file(path: Path, entries: Sequence[Entry], advance: Callable[[int], None]) -> str:
    """One safetensors file, streamed: two tensors at most are in memory at once. Returns its sha256."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        span = [offset, offset + entry.num_bytes]
        header[entry.name] = {"dtype": _CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": span}
        offset += entry.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(start)

    def put(values: memoryview) -> None:
        for place in range(0, len(values), _PIECE):
            piece = values[place : place + _PIECE]
            file.write(piece)
            digest.update(piece)

    with path.open("wb") as file, ThreadPoolExecutor(1) as background:
        file.write(start)
        pending: Future[None] | None = None
        for entry in entries:
            values = _values(entry)  # while the tensor before it is written and hashed
            if pending is not None:
                pending.result()
            pending = background.submit(put, values)
            advance(entry.num_bytes)
        if pending is not None:
            pending.result()
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _values(entry: Entry) -> memoryview:
    tensor = entry.read().to(entry.dtype)
    if tuple(tensor.shape) != tuple(entry.shape):
        raise ShapeError(f"'{entry.name}' became {list(tensor.shape)} instead of {list(entry.shape)}.")
    flat = tensor.contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """A JSON file with a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_manifest(folder: Path, facts: Mapping[str, object], known: Mapping[Path, str] | None = None) -> None:
    """The sha256 and size of every file of a folder, written last: its presence means that the folder is whole.

    Args:
        facts: What else it says.
        known: Hashes that were taken while writing.
    """
    digests = known or {}
    files = {
        path.relative_to(folder).as_posix(): {"sha256": digests.get(path) or sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_json(folder / MANIFEST, {**facts, "files": files})


def sha256(path: Path) -> str:
    """The hash of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()
