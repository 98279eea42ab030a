"""LoRA weights in PEFT's format: kept as they are, or folded into the language model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.convert.damage import read_json
from mmtune.convert.language import Language, dtype_name
from mmtune.convert.plan import Part, change, keep
from mmtune.convert.tensors import Store, StoredTensor, not_understood, open_folder, require_weight
from mmtune.core.errors import CheckpointError, NotPossibleError

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Fields of a PEFT config that change the arithmetic, with the value under which it is W + scale * B @ A.
_PLAIN: Mapping[str, Any] = {"use_dora": False, "fan_in_fan_out": False, "bias": "none", "modules_to_save": None}


@dataclass(frozen=True, slots=True)
class Lora:
    """A PEFT LoRA and the linear maps it changes."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Store
    pairs: Mapping[str, tuple[StoredTensor, StoredTensor]]  # "model.layers.0.mlp.up_proj" -> A [r, in], B [out, r]

    def scale(self, module: str, rank: int) -> float:
        """alpha / r of one map, or alpha / sqrt(r) with rank-stabilised LoRA."""
        alpha = _pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def update(self, module: str, dtype: torch.dtype | None = None) -> Tensor:
        """``scale * B @ A`` in float32, ``[out, in]``, from factors rounded to ``dtype`` if given."""
        a, b = self.pairs[module]
        return (b.rounded(dtype) @ a.rounded(dtype)) * self.scale(module, a.shape[0])

    def part(self, dtype: torch.dtype | None) -> Part:
        """The folder ``lora`` of a written checkpoint."""
        config = {**self.config, "base_model_name_or_path": None, "inference_mode": True}
        if not isinstance(config["target_modules"], str):  # a regular expression
            config["target_modules"] = sorted(config["target_modules"])
        entries = tuple(keep(self.tensors[name], name, dtype) for name in sorted(self.tensors))
        return Part(
            "lora", "adapter_model", entries, {"adapter_config.json": config}, sharded=False, origin=self.folder
        )


def read_lora(folder: Path, language: Language) -> Lora:
    """Read the LoRA of a checkpoint and match it with its base.

    Raises:
        CheckpointError: A half pair, a map that the base does not have, or another shape.
        NotPossibleError: A kind of adapter other than LoRA.
    """
    config = read_json(folder / "adapter_config.json")
    where = str(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise NotPossibleError(
            f"Adapters of kind {config.get('peft_type')!r} are not read by this version.", where=where
        )
    for field, plain in _PLAIN.items():
        if config.get(field, plain) not in (plain, None, []):
            raise NotPossibleError(f"A LoRA with {field}={config[field]!r} is not read by this version.", where=where)
    if not isinstance(config.get("lora_alpha"), int | float) or not _are_targets(config.get("target_modules")):
        raise CheckpointError("lora_alpha and target_modules must be there.", where=where, fix="copy the file again")
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(field) or {}
        if not isinstance(pattern, Mapping) or not all(isinstance(one, int | float) for one in pattern.values()):
            message = f"{field} is {pattern!r}, no object of numbers."
            raise CheckpointError(message, where=where, fix="copy the file again")
    tensors = open_folder(folder, ("adapter_model",))
    lora = Lora(folder, config, tensors, _pair(tensors))
    _check(lora, language)
    return lora


def _are_targets(value: Any) -> bool:
    """Whether PEFT takes a value as ``target_modules``: names, or a regular expression."""
    if not isinstance(value, str):
        return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)
    try:
        re.compile(value)
    except re.error:
        return False
    return bool(value)


def _pair(tensors: Store) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    modules = {name.removeprefix(_PREFIX).removesuffix(_A).removesuffix(_B) for name in tensors}
    unknown = [name for name in tensors if not (name.startswith(_PREFIX) and name.endswith((_A, _B)))]
    if unknown:
        raise not_understood(unknown, tensors, form="LoRA")
    pairs = {}
    for module in sorted(modules):
        names = (f"{_PREFIX}{module}{_A}", f"{_PREFIX}{module}{_B}")
        for name in names:
            if name not in tensors:
                other = next(tensor for tensor in tensors.values())
                raise CheckpointError(f"Tensor '{name}' is missing.", where=str(other.file), fix="copy the file again")
        pairs[module] = (tensors[names[0]], tensors[names[1]])
    return pairs


def _check(lora: Lora, language: Language) -> None:
    if not lora.pairs:
        raise CheckpointError("The LoRA holds no tensors.", where=str(language.folder), fix="copy the adapter again")
    for module, (a, b) in lora.pairs.items():
        weight = language.tensors.get(f"{module}.weight")
        if weight is None:
            raise CheckpointError(
                f"The LoRA changes '{module}', which the base does not have.",
                where=str(a.file),
                fix="give the right base with --llm",
            )
        rank = _pattern(lora.config.get("rank_pattern"), module, lora.config.get("r", a.shape[0]))
        require_weight(a, (rank, weight.shape[1]), because="its base and adapter_config.json")
        require_weight(b, (weight.shape[0], rank), because="its base and adapter_config.json")


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's own rule: a key matches the end of a module's name."""
    for key, value in (patterns or {}).items():
        if module == key or module.endswith(f".{key}"):
            return value
    return default


def merged_part(language: Language, lora: Lora, dtype: torch.dtype | None) -> Part:
    """The language model with the LoRA folded in, one tensor at a time."""
    part = language.part(dtype)
    entries = []
    for entry in part.entries:
        module = entry.name.removesuffix(".weight")
        if module in lora.pairs:
            entry = change(entry.name, entry.shape, entry.dtype, _merger(language.tensors[entry.name], lora, module))
        entries.append(entry)
    documents = {
        **part.documents,
        "config.json": {**part.documents["config.json"], "dtype": dtype_name(dtype or language.dtype)},
    }
    return Part(part.folder, part.stem, tuple(entries), documents, origin=part.origin)


def _merger(weight: StoredTensor, lora: Lora, module: str) -> Callable[[], Tensor]:
    return lambda: weight.read().float() + lora.update(module)
