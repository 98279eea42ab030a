"""Language models and towers that a checkpoint stands on, in whichever layout they are found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune.convert.language import Language, read_language
from mmtune.convert.meta_llama import read_meta_language
from mmtune.convert.meta_shards import is_meta_folder
from mmtune.convert.openai_clip import read_clip_tower
from mmtune.convert.plan import Request
from mmtune.convert.tensors import Store
from mmtune.convert.vision import Tower, read_tower


def open_language(folder: Path) -> Language:
    """The language model of a folder: Meta's layout, a plain causal LM, or the one inside a LLaVA or VLoRA checkpoint.

    Raises:
        CheckpointError: Something is missing, unknown, damaged or does not fit.
        NotPossibleError: A decoder that this version does not read.
    """
    return read_meta_language(folder) if is_meta_folder(folder) else read_language(folder)


def open_tower(folder: Path, config: Mapping[str, Any], inside: Store, request: Request) -> Tower:
    """The vision tower of a checkpoint; ``--vision`` may also be OpenAI's own file. See :func:`read_tower`."""
    if request.vision is not None and Path(request.vision).expanduser().is_file():
        return read_clip_tower(Path(request.vision).expanduser())
    return read_tower(folder, config, inside, request)
