"""Tells a checkpoint's format by its content: config keys and tensor names, never the name of its folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.convert.damage import read_json
from mmtune.convert.tensors import has_weights, open_folder
from mmtune.core.errors import CheckpointError, NotPossibleError

READABLE = ("llava", "vlora")
PLANNED = ("meta-llama", "lavin", "multi-token", "hf", "openai-clip")

_PROJECTOR = re.compile(r"(?:^|\.)mm_projector\.(.+)$")
_VLORA_ONLY = ("Bs", "pos_embed", "visual_proj.weight")
_HF_LLAVA = ("llava", "llava_next")


@dataclass(frozen=True, slots=True)
class Found:
    """A format and which of its forms: ``full``, ``projector`` (adapter alone) or ``lora``."""

    format: str
    form: str


def detect(folder: Path) -> Found:
    """The format of a folder.

    Raises:
        CheckpointError: Nothing here is a checkpoint, or config and tensors contradict each other.
        NotPossibleError: A format that is known but not read by this version.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("model_type") == "mmtune":
        raise CheckpointError(
            "This folder is an mmtune checkpoint already.",
            where=str(folder),
            fix="use it with --model, without converting",
        )
    names = list(_tensor_names(folder))
    projector = {match.group(1) for match in map(_PROJECTOR.search, names) if match}
    by_config = _by_config(config)
    by_tensors = _by_projector(projector)
    if by_config in READABLE and by_tensors is not None and by_config != by_tensors:
        raise CheckpointError(
            f"config.json describes a {by_config} checkpoint, the tensors are those of {by_tensors}.",
            where=str(folder),
            fix="use the config.json and the weights of one and the same checkpoint",
        )
    if by_config in (None, "hf") and by_tensors is not None:
        by_config = by_tensors  # a plain language model's config beside a projector
    kind = by_config or _by_files(folder)
    if kind in READABLE:
        return Found(kind, form_of(folder))
    if kind in PLANNED:
        raise not_in_this_version(kind, str(folder))
    raise CheckpointError(
        _unknown(folder),
        where=str(folder),
        allowed=READABLE,
        fix="name the format with --from llava or --from vlora",
    )


def form_of(folder: Path) -> str:
    """Whether a LLaVA-like folder holds everything, a LoRA, or the projector alone."""
    if (folder / "adapter_config.json").is_file() or has_weights(folder, ("adapter_model",)):
        return "lora"
    if not has_weights(folder) and not has_weights(folder, ("mm_projector",)):
        open_folder(folder)  # says what is missing
    return "full" if has_weights(folder) else "projector"


def not_in_this_version(kind: str, where: str) -> NotPossibleError:
    """The error for a format that this version does not read."""
    return NotPossibleError(
        f"Reading '{kind}' checkpoints is not part of this version.",
        where=where,
        fix=f"convert one of these formats: {', '.join(READABLE)}",
        allowed=READABLE,
    )


def _tensor_names(folder: Path) -> Iterable[str]:
    for stem in ("mm_projector", "non_lora_trainables"):
        if has_weights(folder, (stem,)):
            yield from open_folder(folder, (stem,))
    if has_weights(folder):
        yield from open_folder(folder)


def _by_projector(names: set[str]) -> str | None:
    if not names:
        return None
    return "vlora" if names.intersection(_VLORA_ONLY) else "llava"


def _by_config(config: Mapping[str, Any]) -> str | None:
    kind = config.get("model_type")
    if kind in _HF_LLAVA and "vision_config" in config:
        return "hf"
    if "modalities" in config and "modality_builder" in config:
        return "multi-token"
    if config.get("mm_projector_type") == "vlora" or kind == "llava_vlora":
        return "vlora"
    if "mm_vision_tower" in config or kind in ("llava_llama", "llava_mistral", "llava_mpt"):
        return "llava"
    return "hf" if kind is not None else None


def _by_files(folder: Path) -> str | None:
    if (folder / "params.json").is_file() and any(folder.glob("consolidated.*.pth")):
        return "meta-llama"
    if has_weights(folder, ("non_lora_trainables",)) and has_weights(folder, ("adapter_model",)):
        return "llava"
    if (folder / "adapter_config.json").is_file():
        return "hf"
    return None


def _unknown(folder: Path) -> str:
    files = sorted(path.name for path in folder.iterdir())[:6]
    return f"No known checkpoint format here. The folder holds: {', '.join(files) or 'nothing'}."
