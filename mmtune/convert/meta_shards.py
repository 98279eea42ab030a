"""Meta's ``consolidated.NN.pth``: every tensor put together again from its slices, one tensor at a time.

The slices of a model-parallel checkpoint are told by their shapes, never by a table of model sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmtune.convert.damage import read_json
from mmtune.convert.tensors import Store, StoredTensor, derived, not_understood, open_file
from mmtune.core.errors import CheckpointError

_NUMBER = re.compile(r"^consolidated\.(\d+)\.pth$")
_COMPUTED = re.compile(r"(?:^|\.)rope\.freqs$")
_COLUMNS = ("wo", "w2")  # sliced along their input, all others along their output
_KEY_VALUE = ("wk", "wv")
_NORMS = ("attention_norm", "ffn_norm", "norm")
_KNOWN = re.compile(
    r"^(?:tok_embeddings|norm|output|layers\.\d+\.(?:attention\.w[qkvo]|feed_forward\.w[123]|attention_norm|ffn_norm))"
    r"\.weight$"
)
_FIX = "copy all consolidated.NN.pth files and params.json again, from one and the same model"


@dataclass(frozen=True, slots=True)
class MetaSizes:
    """What ``params.json`` says of a model, and what its tensors add to it."""

    width: int  # D
    layers: int
    heads: int
    kv_heads: int

    @property
    def head_width(self) -> int:
        """Rows of one head in a projection."""
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        """Rows of all key or value heads."""
        return self.head_width * self.kv_heads


def is_meta_folder(folder: Path) -> bool:
    """Whether a folder holds a model in Meta's layout."""
    return (folder / "params.json").is_file() and any(folder.glob("consolidated*.pth"))


def read_params(folder: Path) -> dict[str, Any]:
    """``params.json``, also where its values stand under ``model``.

    Raises:
        CheckpointError: The file is missing or no JSON object.
    """
    values = read_json(folder / "params.json")
    inner = values.get("model")
    return dict(inner) if isinstance(inner, dict) else values


def read_sizes(params: Mapping[str, Any], folder: Path) -> MetaSizes:
    """The sizes that ``params.json`` states.

    Raises:
        CheckpointError: A size is missing, no number, or does not divide as it must.
    """
    where = str(folder / "params.json")
    kv_heads = params.get("n_kv_heads")
    values = {
        "dim": params.get("dim"),
        "n_layers": params.get("n_layers"),
        "n_heads": params.get("n_heads"),
        "n_kv_heads": params.get("n_heads") if kv_heads is None else kv_heads,
    }
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"params.json says {name} {value!r}, which is no size.", where=where, fix=_FIX)
    sizes = MetaSizes(*(int(values[name]) for name in ("dim", "n_layers", "n_heads", "n_kv_heads")))
    if sizes.width % (2 * sizes.heads) or sizes.heads % sizes.kv_heads:
        raise CheckpointError(
            f"params.json says dim {sizes.width}, n_heads {sizes.heads} and n_kv_heads {sizes.kv_heads}, which do not "
            "divide.",
            where=where,
            fix=_FIX,
        )
    return sizes


def open_shards(folder: Path) -> list[dict[str, StoredTensor]]:
    """The tensors of every shard, in the order of their numbers, computed buffers left out.

    Raises:
        CheckpointError: A number or a tensor is missing, or a shard is damaged.
    """
    single = folder / "consolidated.pth"
    numbered = {int(match.group(1)): path for path in folder.iterdir() if (match := _NUMBER.match(path.name))}
    files = [numbered[number] for number in sorted(numbered)] or [single]
    if numbered and sorted(numbered) != list(range(len(numbered))):
        absent = next(number for number in range(max(numbered)) if number not in numbered)
        raise CheckpointError(
            f"Shard consolidated.{absent:02d}.pth is missing among {len(numbered)}.", where=str(folder), fix=_FIX
        )
    shards = [{name: part for name, part in open_file(path).items() if not _COMPUTED.search(name)} for path in files]
    for path, shard in zip(files, shards, strict=True):
        if unknown := [name for name in shard if not _KNOWN.match(name)]:
            raise not_understood(unknown, shard, form="Meta Llama checkpoint")
        if different := sorted(shard.keys() ^ shards[0].keys()):
            raise CheckpointError(f"Tensor '{different[0]}' is not in every shard.", where=str(path), fix=_FIX)
    return shards


def merge_shards(shards: Sequence[Store], sizes: MetaSizes) -> dict[str, StoredTensor]:
    """Every tensor whole, under Meta's names, its slices read when it is.

    Raises:
        CheckpointError: Slices that do not add up to the sizes; a shard too few or too many shows here.
    """
    return {name: _merge(name, [shard[name] for shard in shards], sizes, shards) for name in shards[0]}


def _merge(name: str, parts: list[StoredTensor], sizes: MetaSizes, shards: Sequence[Store]) -> StoredTensor:
    kind = name.removesuffix(".weight").rpartition(".")[2]
    for part in parts:
        if part.shape != parts[0].shape or part.dtype != parts[0].dtype:
            raise _slices(part, f"{list(parts[0].shape)} in {parts[0].dtype} as in the first shard")
        _require(part, bool(part.shape), "a vector or a matrix")
    if kind in _NORMS:
        _require(parts[0], parts[0].shape == (sizes.width,), f"one value for each of {sizes.width}")
        return parts[0]
    if kind == "tok_embeddings":
        return _embeddings(parts, sizes)
    if kind == "output" and "tok_embeddings.weight" in shards[0]:
        vocabulary = _embeddings([shard["tok_embeddings.weight"] for shard in shards], sizes).shape[0]
        if parts[0].shape == (vocabulary, sizes.width):  # one shard, or the same matrix in each
            return parts[0]
    if kind in _KEY_VALUE:
        return _key_value(parts, sizes)
    rows, columns = _slice_shape(kind, sizes, len(parts))
    shape = parts[0].shape
    fits = len(shape) == 2 and shape[0] == (rows or shape[0]) and shape[1] == (columns or shape[1])
    _require(parts[0], fits, f"a slice of one of {len(parts)} shards of a model of width {sizes.width}")
    return _joined(parts, 1 if kind in _COLUMNS else 0)


def _slice_shape(kind: str, sizes: MetaSizes, count: int) -> tuple[int | None, int | None]:
    """Rows and columns of one slice, None where the checkpoint itself says them."""
    width = sizes.width
    if kind in _COLUMNS:
        return width, width // count if kind == "wo" else None
    return width // count if kind == "wq" else None, width


def _embeddings(parts: list[StoredTensor], sizes: MetaSizes) -> StoredTensor:
    """Llama 1 and 2 slice the width, Llama 3 the vocabulary."""
    count, shape = len(parts), parts[0].shape
    fits = len(shape) == 2 and shape[1] in (sizes.width, sizes.width // count)
    _require(parts[0], fits, f"rows of width {sizes.width}, whole or one slice of {count}")
    return _joined(parts, 0 if shape[1] == sizes.width else 1)


def _key_value(parts: list[StoredTensor], sizes: MetaSizes) -> StoredTensor:
    """Key and value heads; with more shards than heads each slice is there several times."""
    rows = parts[0].shape[0] * len(parts)
    copies = rows // sizes.kv_width
    fits = len(parts[0].shape) == 2 and parts[0].shape[1] == sizes.width and rows == copies * sizes.kv_width
    fits = fits and copies > 0 and len(parts) % copies == 0
    _require(parts[0], fits, f"{sizes.kv_heads} key and value heads of {sizes.head_width} over {len(parts)} shards")
    if copies == 1:
        return _joined(parts, 0)
    for start in range(0, len(parts), copies):
        first = parts[start].read()
        for other in parts[start + 1 : start + copies]:
            if not torch.equal(first, other.read()):
                raise _slices(other, f"a copy of the slice in {parts[start].file.name}")
    return _joined(parts[::copies], 0)


def _joined(parts: list[StoredTensor], axis: int) -> StoredTensor:
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[axis] *= len(parts)
    return derived(parts[0], tuple(shape), lambda: torch.cat([part.read() for part in parts], dim=axis))


def _require(tensor: StoredTensor, fits: bool, wanted: str) -> None:
    if not fits:
        raise _slices(tensor, wanted)


def _slices(tensor: StoredTensor, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"Tensor '{tensor.name}' is {list(tensor.shape)} in {tensor.dtype}, which is not {wanted}.",
        where=str(tensor.file),
        fix=_FIX,
    )
