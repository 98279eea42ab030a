"""Checkpoints of a run: atomic, verified, and enough of them to go on bit by bit where a run stopped.

A checkpoint is ``step-000500/`` with ``trained.safetensors`` (every trained parameter as it is in memory),
``optimizer.safetensors``, ``state.json`` (step, totals, random states of every process) and ``MANIFEST.json`` with the
hash of each, written last. Tensors are whole, however many processes shared them, so that any number of processes can
go on. Weights that load as a model are in the run's ``model/``.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmtune.core.errors import ResourceError
from mmtune.data.workplace import need_space
from mmtune.model.shares import like, put, whole
from mmtune.train.files import replace_folder, sha256, sync, write_json, writing

_FILES = ("trained.safetensors", "optimizer.safetensors", "state.json")
_MANIFEST = "MANIFEST.json"
_NAME = re.compile(r"step-\d+")
_ROOM = "free some space, then run the same command again; save.keep=1 keeps fewer checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """One that holds what its manifest says."""

    folder: Path
    step: int
    state: dict[str, Any]

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int = 0, size: int = 1) -> bool:
        """Put weights, optimizer and random states back as they were.

        Returns:
            Whether the random states came back too: not for another number of processes.
        """
        trained = load_file(self.folder / "trained.safetensors")
        parameters = _trained(model)
        for name, parameter in parameters.items():
            put(parameter, trained[name])
        _load_optimizer(optimizer, load_file(self.folder / "optimizer.safetensors"))
        states = self.state["random"]
        if len(states) != size:
            return False
        restore_random(states[rank])
        return True


@dataclass(frozen=True)
class Contents:
    """What a checkpoint is made of, whole and on the CPU."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


def collect(model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool = True) -> Contents:
    """Gather what several processes may share; called by all of them, kept by the one that writes."""
    weights = {name: _copied(parameter, keep) for name, parameter in _trained(model).items()}
    state = optimizer.state_dict()["state"]
    moments = {f"{i}.{key}": _copied(value, keep) for i, entry in state.items() for key, value in _flat(entry)}
    return Contents(weights, _unshared(moments))


def save_checkpoint(root: Path, step: int, contents: Contents, state: Mapping[str, Any], *, keep: int) -> Path:
    """Write ``step-NNNNNN`` whole or not at all, then remove the oldest beyond ``keep``.

    Args:
        state: A JSON value, with the random state of every process under ``random``.

    Raises:
        ResourceError: The disk is full or cannot be written to.
    """
    final = root / f"step-{step:06d}"
    partial = root / f".step-{step:06d}.partial"
    with writing(final):
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        _make_space(root, sum(tensor.nbytes for tensor in (*contents.weights.values(), *contents.moments.values())))
        partial.mkdir()
        save_file(contents.weights, partial / _FILES[0])
        save_file(contents.moments, partial / _FILES[1])
        write_json(partial / _FILES[2], {**state, "step": step})
        for name in _FILES:
            sync(partial / name)
        found = {name: {"sha256": sha256(partial / name), "bytes": (partial / name).stat().st_size} for name in _FILES}
        write_json(partial / _MANIFEST, {"step": step, "files": found})
        replace_folder(partial, final)
    for old in list_checkpoints(root)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _make_space(root: Path, num_bytes: int) -> None:
    """Ask the disk; where it is short, the oldest checkpoints go as long as one stays.

    Raises:
        ResourceError: Not enough even then.
    """
    for old in reversed(list_checkpoints(root)[1:]):
        try:
            return need_space(root, num_bytes, _ROOM)
        except ResourceError:
            shutil.rmtree(old, ignore_errors=True)
    need_space(root, num_bytes, _ROOM)


def find_checkpoint(root: Path, before: int | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose manifest holds, and a line for each newer one that is damaged.

    Args:
        before: Only checkpoints of earlier steps count.
    """
    notes: list[str] = []
    for folder in list_checkpoints(root):
        if before is not None and _step_of(folder) >= before:
            continue
        fault = _fault(folder)
        if fault is None:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(folder, int(state["step"]), state), notes
        notes.append(f"{folder.name} is damaged ({fault}); falling back to an older checkpoint")
    return None, notes


def list_checkpoints(root: Path) -> list[Path]:
    """All finished checkpoints, newest first; copies that somebody made under other names are none."""
    folders = [folder for folder in root.glob("step-*") if _NAME.fullmatch(folder.name) and folder.is_dir()]
    return sorted(folders, key=_step_of, reverse=True)


def remove_partial(root: Path) -> None:
    """Clear what a killed process left half written, and put back what it was about to replace."""
    for folder in root.glob(".*.partial"):
        shutil.rmtree(folder, ignore_errors=True)
    for old in root.glob(".*.old"):
        final = root / old.name.removeprefix(".").removesuffix(".old")
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, final)


def random_state() -> dict[str, Any]:
    """All random states of this process as a JSON value."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state()
    found: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, numpy.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _hex(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        found["cuda"] = [_hex(state) for state in torch.cuda.get_rng_state_all()]
    return found


def restore_random(found: Mapping[str, Any]) -> None:
    """Put back what :func:`random_state` gave."""
    version, internal, gauss = found["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = found["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(_bytes(found["torch"]))
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_bytes(state) for state in found["cuda"]])


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _fault(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        for name in _FILES:
            expected, path = manifest["files"][name], folder / name
            if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
                return f"{name} is not what the manifest says"
    except FileNotFoundError as error:
        return f"{os.path.basename(error.filename)} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{_MANIFEST} cannot be read: {error}"
    return None


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, *path, key = name.split(".")
        parameter = parameters[int(index)]
        entry: dict[str, Any] = state.setdefault(int(index), {})
        for part in path:
            entry = entry.setdefault(part, {})
        is_number = tensor.dtype == torch.int64 and tensor.ndim == 0
        shared = like(parameter, tensor) if tensor.shape == parameter.shape else tensor
        entry[key] = int(tensor) if is_number else shared
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _flat(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """An optimizer's state of one parameter as tensors: some optimizers nest theirs, some count in plain numbers."""
    for key, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, Tensor) else torch.tensor(value)


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tables that an optimizer has once for all parameters are written with each: files hold no shared tensors."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return found


def _copied(tensor: Tensor, keep: bool) -> Tensor:
    return whole(tensor, keep=keep).cpu().contiguous()


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
