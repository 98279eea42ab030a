"""The projectors of a multi_token checkpoint: their kinds and sizes, told by names and shapes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.convert.plan import change, keep
from mmtune.convert.tensors import Store, StoredTensor, not_understood, require_weight
from mmtune.convert.writer import Entry
from mmtune.core.errors import CheckpointError

ENDING = "_lmm_projector."
LORA_PREFIX, PLAIN_PREFIX = "base_model.model.model.", "model."  # with LoRA around the language model, and without
_LAYER = re.compile(r"^(?:mlps\.(\d+)\.)?(\d+)\.(weight|bias)$")


@dataclass(frozen=True, slots=True)
class OriginalProjector:
    """One projector as the published code keeps it.

    Args:
        name: Its modality's name in the checkpoint.
        kind: ``patch``, or ``vector`` for ``width`` MLPs of their own.
        layers: Linear maps of each MLP.
        width: MLPs; 1 for ``patch``.
        tensors: By the name behind ``_lmm_projector.``.
    """

    name: str
    kind: str
    layers: int
    width: int
    tensors: Store

    @property
    def settings(self) -> dict[str, Any]:
        """What ``model.settings.projectors`` says of it."""
        sized = {"width": self.width} if self.kind == "vector" else {}
        return {"kind": self.kind, "layers": self.layers, **sized}

    def entries(self, target: str, dtype: torch.dtype | None) -> Iterator[Entry]:
        """The tensors to write under ``target``; those of all MLPs are stacked."""
        for number in range(0, 2 * self.layers, 2):  # between two maps stands a GELU
            for part in ("weight", "bias"):
                name = f"{target}layers.{number}.{part}"
                if self.kind == "patch":
                    yield keep(self.tensors[f"{number}.{part}"], name, dtype)
                    continue
                single = [self.tensors[f"mlps.{index}.{number}.{part}"] for index in range(self.width)]
                yield change(name, (self.width, *single[0].shape), dtype or single[0].dtype, _stacked(single))


def _stacked(single: list[StoredTensor]) -> Callable[[], Tensor]:
    return lambda: torch.stack([tensor.read() for tensor in single])


def split_projectors(store: Store) -> tuple[dict[str, dict[str, StoredTensor]], dict[str, StoredTensor]]:
    """The tensors of each modality's projector by name, and all others of the file under their full names."""
    projectors: dict[str, dict[str, StoredTensor]] = {}
    others = {}
    for name, tensor in store.items():
        prefix = next((prefix for prefix in (LORA_PREFIX, PLAIN_PREFIX) if name.startswith(prefix)), "")
        modality, found, key = name.removeprefix(prefix).partition(ENDING)
        if prefix and found:
            projectors.setdefault(modality, {})[key] = tensor
        else:
            others[name] = tensor
    return projectors, others


def read_projector(name: str, tensors: Store, *, width: int, hidden: int, where: Path) -> OriginalProjector:
    """Tell the kind of a projector and check its shapes.

    Args:
        width: Features D of the encoder.
        hidden: Size H of the language model's embeddings.

    Raises:
        CheckpointError: A tensor is missing, unknown or of another shape.
    """
    matches = {key: _LAYER.match(key) for key in tensors}
    unknown = [key for key, match in matches.items() if match is None or int(match.group(2)) % 2]
    if unknown or not tensors:
        raise not_understood(unknown, tensors, form=f"projector of '{name}'") if unknown else _missing(name, "0", where)
    found = [match for match in matches.values() if match is not None]
    indices = {match.group(1) for match in found}
    if None in indices and len(indices) > 1:
        mixed = sorted(key for key, match in matches.items() if match is not None and match.group(1) is None)
        raise not_understood(mixed, tensors, form=f"projector of '{name}' with several MLPs")
    count = 1 if None in indices else 1 + max(int(index) for index in indices)
    layers = 1 + max(int(match.group(2)) for match in found) // 2
    kind = "patch" if None in indices else "vector"
    for key, shape in _expected(kind, count, layers, width, hidden):
        if key not in tensors:
            raise _missing(name, key, where)
        require_weight(tensors[key], shape, because=f"a projector from {width} to {hidden}")
    return OriginalProjector(name, kind, layers, count, tensors)


def _expected(kind: str, count: int, layers: int, width: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for index in range(count):
        start = "" if kind == "patch" else f"mlps.{index}."
        for layer in range(layers):
            yield f"{start}{2 * layer}.weight", (hidden, hidden if layer else width)
            yield f"{start}{2 * layer}.bias", (hidden,)


def _missing(name: str, key: str, where: Path) -> CheckpointError:
    return CheckpointError(
        f"Tensor '{name}{ENDING}{key}' is missing.", where=str(where), fix="copy non_lora_trainables.bin again"
    )


def original_entries(modality: str, name: str, entries: Iterable[Entry], *, prefix: str) -> list[Entry]:
    """The tensors of a projector under the names of the published code, those of stacked MLPs taken apart.

    Args:
        modality: The modality's name here.
        name: Its name in the checkpoint.
        entries: The method's tensors.
        prefix: What stands before the projector's name.
    """
    made = []
    for entry in entries:
        start = f"projector.{modality}.layers."
        if not entry.name.startswith(start):
            continue
        key, target = entry.name.removeprefix(start), f"{prefix}{name}{ENDING}"
        stacked = len(entry.shape) == (3 if key.endswith("weight") else 2)
        if not stacked:
            made.append(change(target + key, entry.shape, entry.dtype, entry.read))
            continue
        made += [
            change(f"{target}mlps.{index}.{key}", entry.shape[1:], entry.dtype, _taken(entry, index))
            for index in range(entry.shape[0])
        ]
    return made


def _taken(entry: Entry, index: int) -> Callable[[], Tensor]:
    return lambda: entry.read()[index]
