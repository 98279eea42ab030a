"""Tells a checkpoint's format by its content: config keys and tensor names, never the name of its folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.convert.damage import read_json
from mmtune.convert.formats import READERS, unavailable
from mmtune.convert.lavin_source import is_lavin
from mmtune.convert.locate import SINGLE_FILES
from mmtune.convert.meta_shards import is_meta_folder
from mmtune.convert.openai_clip import is_clip_file
from mmtune.convert.tensors import has_weights, open_folder
from mmtune.core.errors import CheckpointError
from mmtune.model.checkpoint import ADAPTER_FILE
from mmtune.model.lora import LORA_FOLDER

_PROJECTOR = re.compile(r"(?:^|\.)mm_projector\.(.+)$")
_VLORA_ONLY = ("Bs", "pos_embed", "visual_proj.weight")
_LLAVA_LIKE = ("llava", "vlora")
_HF_LLAVA = ("llava", "llava_next")


@dataclass(frozen=True, slots=True)
class Found:
    """A format and which of its forms: ``full``, ``projector`` (adapter alone) or ``lora``."""

    format: str
    form: str


def detect(path: Path) -> Found:
    """The format of a folder or file.

    Raises:
        CheckpointError: Nothing here is a checkpoint, or config and tensors contradict each other.
        NotPossibleError: A format that is known but not read by this version.
    """
    if path.is_file():
        kind = _by_file(path)
        if kind is None:
            raise _not_known(path, "The file is in no known checkpoint format.")
        return Found(kind, form_of(path))
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    names = list(_tensor_names(path))
    projector = {match.group(1) for match in map(_PROJECTOR.search, names) if match}
    by_config = _by_config(config)
    by_tensors = _by_projector(projector)
    if by_config in _LLAVA_LIKE and by_tensors is not None and by_config != by_tensors:
        raise CheckpointError(
            f"config.json describes a {by_config} checkpoint, the tensors are those of {by_tensors}.",
            where=str(path),
            fix="use the config.json and the weights of one and the same checkpoint",
        )
    if by_config in (None, "hf") and by_tensors is not None:
        by_config = by_tensors  # a plain language model's config beside a projector
    kind = by_config or _by_files(path)
    if kind is None:
        raise _not_known(path, _unknown(path))
    if kind not in READERS:
        raise unavailable(kind, READERS, str(path))
    return Found(kind, form_of(path))


def form_of(path: Path) -> str:
    """Whether a folder holds everything, a LoRA, or the projector alone; ``file`` for a single file."""
    if path.is_file() or is_lavin(path):
        return "file"
    if (path / ADAPTER_FILE).is_file():
        return "lora" if (path / LORA_FOLDER).is_dir() else "full"
    if is_meta_folder(path):
        return "full"
    if (path / "adapter_config.json").is_file() or has_weights(path, ("adapter_model",)):
        return "lora"
    if not has_weights(path) and not has_weights(path, ("mm_projector", "non_lora_trainables")):
        if any(file.suffix in SINGLE_FILES for file in path.iterdir()):
            return "file"
        open_folder(path)  # says what is missing
    return "full" if has_weights(path) else "projector"


def _by_file(path: Path) -> str | None:
    if is_lavin(path):
        return "lavin"
    return "openai-clip" if is_clip_file(path) else None


def _not_known(path: Path, message: str) -> CheckpointError:
    names = ", ".join(READERS)
    return CheckpointError(message, where=str(path), allowed=READERS, fix=f"name the format with --from: {names}")


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
    if kind == "mmtune":
        return "mmtune"
    if kind in _HF_LLAVA and "vision_config" in config:
        return "hf"
    if "modalities" in config and ("modality_builder" in config or "model_cls" in config):
        return "multi-token"
    if config.get("mm_projector_type") == "vlora" or kind == "llava_vlora":
        return "vlora"
    if "mm_vision_tower" in config or kind in ("llava_llama", "llava_mistral", "llava_mpt"):
        return "llava"
    return "hf" if kind is not None else None


def _by_files(folder: Path) -> str | None:
    if is_meta_folder(folder):
        return "meta-llama"
    if is_lavin(folder):
        return "lavin"
    if has_weights(folder, ("non_lora_trainables",)) and has_weights(folder, ("adapter_model",)):
        return "llava"
    if (folder / "adapter_config.json").is_file():
        return "llava" if _is_step_of_llava(folder) else "hf"
    return "openai-clip" if is_clip_file(folder) else None


def _is_step_of_llava(folder: Path) -> bool:
    """Whether a bare LoRA lies in the folder of a LLaVA run, as its intermediate checkpoints do."""
    path = folder.resolve().parent / "config.json"
    return path.is_file() and _by_config(read_json(path)) == "llava"


def _unknown(folder: Path) -> str:
    files = sorted(path.name for path in folder.iterdir())[:6]
    return f"No known checkpoint format here. The folder holds: {', '.join(files) or 'nothing'}."
