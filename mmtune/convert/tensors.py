"""Lazy, memory-mapped reading of foreign weights: safetensors and pickled ``.bin`` files, single or sharded.

Nothing here runs code from a file, follows an index out of its folder, or holds more than one tensor in memory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmtune.convert.damage import damaged, read_json
from mmtune.core.errors import CheckpointError, MMTuneError, ResourceError

SAFETENSORS_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor on disk: what its file says about it, and how to read it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    load: Callable[[], Tensor]
    composed: bool = False  # made of other stored tensors, which tell of their own values

    @property
    def num_bytes(self) -> int:
        """Bytes of the values as stored."""
        return num_elements(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The values, backed by the mapped file where its format allows.

        Raises:
            CheckpointError: The file cannot give this tensor, or it holds NaN or infinity.
        """
        try:
            tensor = self.load()
        except (SafetensorError, RuntimeError, OSError, ValueError) as error:
            raise damaged(self.file, error, tensor=self.name) from error
        if not self.composed and not _is_finite(tensor):
            raise CheckpointError(
                f"Tensor '{self.name}' holds values that are not finite.",
                where=str(self.file),
                fix="use a checkpoint of a step before the training diverged, or download the file again",
            )
        return tensor

    def rounded(self, dtype: torch.dtype | None) -> Tensor:
        """The values in float32, after rounding to the precision that a copy of them is written in."""
        return self.read().to(dtype or self.dtype).float()


Store = Mapping[str, StoredTensor]


def _is_finite(tensor: Tensor) -> bool:
    """One pass without a copy: the least and the greatest value are not finite when any value is not."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:  # no comparison of 8-bit floats on CPU
        return bool(torch.isfinite(tensor.float()).all())
    least, greatest = tensor.aminmax()
    return bool(torch.isfinite(least) & torch.isfinite(greatest))


def derived(
    origin: StoredTensor, shape: tuple[int, ...], load: Callable[[], Tensor], name: str | None = None
) -> StoredTensor:
    """A tensor made of others: their file and precision, another shape or order."""
    return StoredTensor(name or origin.name, shape, origin.dtype, origin.file, load, composed=True)


def num_elements(shape: Iterable[int]) -> int:
    """The product of the sizes: 1 for a scalar."""
    product = 1
    for size in shape:
        product *= size
    return product


def open_file(path: Path) -> dict[str, StoredTensor]:
    """All tensors of one weight file, by name, without reading their values.

    Raises:
        CheckpointError: The file is missing, damaged, or a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointError("A weight file is missing.", where=str(path), fix="download or copy the whole checkpoint")
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        handle = safe_open(path, framework="pt", device="cpu")
        stored = {}
        for name in handle.keys():  # noqa: SIM118 (a handle is no mapping)
            view = handle.get_slice(name)
            stored[name] = StoredTensor(
                name=name,
                shape=tuple(view.get_shape()),
                dtype=SAFETENSORS_DTYPES[view.get_dtype()],
                file=path,
                load=lambda name=name: handle.get_tensor(name),
            )
    except KeyError as error:
        raise damaged(path, ValueError(f"unknown data type {error}")) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from error
    return stored


def _open_pickle(path: Path) -> dict[str, StoredTensor]:
    _check_zip(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        raise CheckpointError(
            "The file holds code or objects besides tensors, or is damaged; it was not run.",
            where=str(path),
            fix="use a file that was saved with torch.save(state_dict), or a safetensors file",
        ) from error
    except MemoryError as error:
        raise ResourceError("Not enough memory to open this file.", where=str(path), fix="free memory") from error
    except Exception as error:  # torch.load raises whatever a damaged pickle leads it to
        raise damaged(path, error) from error
    return {name: in_memory(name, tensor, path) for name, tensor in _state_dict(content, path).items()}


def _check_zip(path: Path) -> None:
    """Compare the checksums of all small records: a flipped byte in the pickle would silently move tensors."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.CRC and record.file_size < 2**24 and "/data/" not in record.filename:
                    archive.read(record)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError) as error:
        raise damaged(path, error) from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values()):
        return {str(name): tensor for name, tensor in content.items()}
    raise CheckpointError(
        "The file is no state dict: it holds values that are not tensors.",
        where=str(path),
        fix="give the weight file itself, not optimizer or trainer state",
    )


def in_memory(name: str, tensor: Tensor, path: Path) -> StoredTensor:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise CheckpointError(
            f"Tensor '{name}' is sparse or quantised.", where=str(path), fix="save it as a dense tensor"
        )
    return StoredTensor(name, tuple(tensor.shape), tensor.dtype, path, tensor.detach)


def open_folder(folder: Path, stems: Iterable[str] = ("model", "pytorch_model")) -> dict[str, StoredTensor]:
    """The weights of a folder in the Hugging Face layout: single or sharded, safetensors before ``.bin``.

    Raises:
        CheckpointError: No weights, a missing shard, an index that leaves the folder or disagrees with its shards.
    """
    for stem in stems:
        for suffix in ("safetensors", "bin"):
            index = folder / f"{stem}.{suffix}.index.json"
            single = folder / f"{stem}.{suffix}"
            if index.is_file():
                return _open_index(index)
            if single.is_file():
                return open_file(single)
    names = ", ".join(f"{stem}.safetensors, {stem}.bin (or an index of shards)" for stem in stems)
    shards = sorted(path.name for path in folder.glob("*-of-*"))
    hint = f" There are shards ({shards[0]}, …) but no index." if shards else ""
    raise CheckpointError(
        f"No weights in this folder.{hint} Looked for: {names}.", where=str(folder), fix="copy the whole checkpoint"
    )


def has_weights(folder: Path, stems: Iterable[str] = ("model", "pytorch_model")) -> bool:
    """Whether :func:`open_folder` would find a file to open."""
    endings = [f"{stem}.{suffix}" for stem in stems for suffix in ("safetensors", "bin")]
    return any((folder / name).is_file() or (folder / f"{name}.index.json").is_file() for name in endings)


def _open_index(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("The index has no 'weight_map'.", where=str(index), fix="copy the index file again")
    files = {str(file): open_file(_inside(index, file)) for file in dict.fromkeys(weight_map.values())}
    stored = {}
    for name, file in weight_map.items():
        if name not in files[file]:
            raise CheckpointError(
                f"Tensor '{name}' is in the index but not in its shard.",
                where=str(index.parent / file),
                fix="copy this shard and the index again",
            )
        stored[name] = files[file][name]
    unlisted = [(file, name) for file, tensors in files.items() for name in tensors if weight_map.get(name) != file]
    if unlisted:
        file, name = unlisted[0]
        raise CheckpointError(
            f"Tensor '{name}' is in a shard but the index does not place it there.",
            where=str(index.parent / file),
            fix="copy the shards and the index again, all from the same checkpoint",
        )
    return stored


def _inside(index: Path, file: Any) -> Path:
    parts = PurePosixPath(file).parts if isinstance(file, str) else ()
    if not parts or PurePosixPath(file).is_absolute() or ".." in parts or "\\" in file or ":" in file or "\0" in file:
        raise CheckpointError(
            f"The index names the file {file!r}, which lies outside of its folder.",
            where=str(index),
            fix="do not use this checkpoint, or correct the index",
        )
    return index.parent / str(file)


def require_shape(tensor: StoredTensor, shape: tuple[int, ...], *, because: str) -> None:
    """Refuse a tensor whose shape is not the one that ``because`` demands.

    Raises:
        CheckpointError: Names the file, the tensor and both shapes.
    """
    if tensor.shape != tuple(shape):
        raise CheckpointError(
            f"Tensor '{tensor.name}' has shape {list(tensor.shape)}, but {because} asks for {list(shape)}.",
            where=str(tensor.file),
            fix="use the config.json and the weights of one and the same checkpoint",
        )


def require_weight(tensor: StoredTensor, shape: tuple[int, ...], *, because: str) -> None:
    """As :func:`require_shape`, and refuse values that are not in floating point.

    Raises:
        CheckpointError: Names the file and the tensor.
    """
    require_shape(tensor, shape, because=because)
    if not tensor.dtype.is_floating_point:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"Tensor '{tensor.name}' holds {kind} values: a quantised or damaged checkpoint.",
            where=str(tensor.file),
            fix="use the checkpoint in 16 or 32 bit",
        )


def not_understood(names: Iterable[str], store: Store, *, form: str) -> MMTuneError:
    """The error for tensors that no rule of a format explains."""
    listed = sorted(names)
    more = f" and {len(listed) - 1} more" if len(listed) > 1 else ""
    return CheckpointError(
        f"Unknown tensor '{listed[0]}'{more} in a {form}.",
        where=str(store[listed[0]].file),
        fix="check that this is the format named by --from; nothing is dropped silently",
    )
