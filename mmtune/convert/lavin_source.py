"""Finds what a LaVIN checkpoint consists of: the adapter's file, its arguments, LLaMA and CLIP."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from mmtune.convert.bases import open_language
from mmtune.convert.damage import damaged
from mmtune.convert.language import Language
from mmtune.convert.locate import Place, candidates, locate
from mmtune.convert.openai_clip import is_clip_file, open_clip, read_clip_tower
from mmtune.convert.plan import Request
from mmtune.convert.tensors import StoredTensor, in_memory
from mmtune.convert.vision import Tower, read_tower
from mmtune.core.errors import CheckpointError

HUB_TOWER = "openai/clip-vit-large-patch14"  # the same weights as OpenAI's own file
_CACHE = Path("~/.cache/clip/ViT-L-14.pt")  # where OpenAI's package keeps it, and LaVIN's code looks
_EPOCH = re.compile(r"^checkpoint-(\d+)$")
_MODULE = "module."  # what a distributed run puts before every name
_FIX = "give the checkpoint-N.pth that LaVIN's training wrote"


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """The trained part: its tensors without ``module.``, and what else the file says."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    arguments: Mapping[str, Any]  # of the training; empty where the file holds none
    epoch: int | None
    distributed: bool  # names begin with "module."


def is_lavin(path: Path) -> bool:
    """Whether a file is, or a folder holds, an adapter of LaVIN."""
    try:
        return bool(open_adapter(find_adapter(path)).tensors)
    except CheckpointError:
        return False


def find_adapter(path: Path) -> Path:
    """The adapter's file of a checkpoint: the file itself, or the last epoch's in a folder or one of its folders.

    Raises:
        CheckpointError: None, or several that are no epochs of one run.
    """
    if path.is_file():
        return path
    found = [file for file in (*path.glob("*.pth"), *path.glob("*/*.pth")) if not file.name.startswith("consolidated")]
    if not found:
        raise CheckpointError("The folder holds no adapter (.pth).", where=str(path), fix=_FIX)
    epochs = {file: match for file in found if (match := _EPOCH.match(file.stem))}
    if len(epochs) < len(found) > 1 or len({file.parent for file in found}) > 1:
        names = ", ".join(sorted(str(file.relative_to(path)) for file in found)[:4])
        raise CheckpointError(f"The folder holds several .pth files: {names}.", where=str(path), fix="name one of them")
    return max(found, key=lambda file: int(epochs[file].group(1)) if file in epochs else 0)


def open_adapter(path: Path) -> AdapterFile:
    """Open an adapter's file: LaVIN's own dict, or its ``model`` alone. No code in it is run.

    Raises:
        CheckpointError: Damaged, with objects besides tensors and arguments, or without any tensor of an adapter.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        raise CheckpointError(
            "The file holds objects besides tensors and arguments, or is damaged; it was not run.",
            where=str(path),
            fix=_FIX,
        ) from error
    except Exception as error:  # torch.load raises whatever a damaged pickle leads it to
        raise damaged(path, error) from error
    content = content if isinstance(content, Mapping) else {}
    tensors = content.get("model", content)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError("The file holds no adapter: its 'model' is no state dict.", where=str(path), fix=_FIX)
    names = {str(name): value for name, value in tensors.items()}
    if not any("adapter" in name for name in names):
        raise CheckpointError("The file holds no tensor of an adapter.", where=str(path), fix=_FIX)
    stored = {name.replace(_MODULE, ""): in_memory(name, value, path) for name, value in names.items()}
    arguments = content.get("args") or {}
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else dict(arguments)
    epoch = content.get("epoch")
    distributed = all(name.startswith(_MODULE) for name in names)
    return AdapterFile(path, stored, arguments, epoch if isinstance(epoch, int) else None, distributed)


def find_language(adapter: AdapterFile, source: Path, request: Request) -> tuple[Language, Place]:
    """LLaMA in Meta's or Hugging Face's layout: ``--llm``, the path in the arguments, or a folder inside the source.

    Raises:
        CheckpointError: Not found, or not what its files say.
    """
    size = str(adapter.arguments.get("llm_model") or "")
    names = [request.llm] if request.llm else [adapter.arguments.get("llama_model_path")]
    for name in filter(None, names):
        for folder in candidates(str(name), adapter.path.parent):
            for place in (folder, folder / size):
                if _has_language(place):
                    return open_language(place), Place(place)
        if request.llm:
            found = locate(str(name), what="language model", option="--llm")
            return open_language(found.folder), Place(found.folder) if request.whole else found
    inside = [folder for folder in _folders(source, adapter) if _has_language(folder)]
    inside = [folder for folder in inside if folder.name == size] or inside
    if len(inside) != 1:
        raise CheckpointError(
            "LaVIN's adapter holds no language model, and its LLaMA was not found.",
            where=str(adapter.path),
            fix="give the folder of LLaMA (Meta's shards, or Hugging Face) with --llm",
        )
    return open_language(inside[0]), Place(inside[0])


def find_tower(adapter: AdapterFile, source: Path, request: Request) -> Tower:
    """CLIP ViT-L/14: ``--vision``, a file or folder inside the source, the cache of OpenAI's package, or the hub.

    Raises:
        CheckpointError: Not found, or not what its files say.
        ResourceError: It is on the hub only, and the hub is out of reach.
    """
    if request.vision is not None:
        path = Path(request.vision).expanduser()
        return read_clip_tower(path) if is_clip_file(path) else read_tower(source, {}, {}, request)
    folders = list(_folders(source, adapter))
    files = [file for folder in folders for file in sorted(folder.glob("*.pt"))]
    for file in (*files, _CACHE.expanduser()):
        if is_clip_file(file):
            return read_clip_tower(file)
        if file.is_file() and file.name.startswith("ViT-"):
            open_clip(file)  # says what is wrong with it, instead of looking elsewhere without a word
    for folder in folders:
        if (folder / "preprocessor_config.json").is_file():
            return read_tower(source, {}, {}, replace(request, vision=str(folder)))
    return read_tower(source, {}, {}, replace(request, vision=HUB_TOWER))


def _has_language(folder: Path) -> bool:
    if (folder / "preprocessor_config.json").is_file():  # a vision tower
        return False
    return any((folder / name).is_file() for name in ("params.json", "config.json"))


def _folders(source: Path, adapter: AdapterFile) -> Iterator[Path]:
    """The folders of a checkpoint, two levels deep; those around the adapter where the source is its file."""
    top = source if source.is_dir() else adapter.path.parent.parent
    yield top
    yield from (folder for pattern in ("*", "*/*") for folder in sorted(top.glob(pattern)) if folder.is_dir())
