"""Reads OpenAI's CLIP (``ViT-L-14.pt``): the picture half as ``CLIPVisionModel``, as a part or for itself.

A TorchScript archive is opened for its tensors alone; nothing in it is called.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmtune.convert.damage import damaged
from mmtune.convert.plan import PlainPlan, Request
from mmtune.convert.reference_openai_clip import OpenAIClipReference
from mmtune.convert.tensors import Store, StoredTensor, derived, in_memory, not_understood, open_file
from mmtune.convert.vision import Tower, checked_tower, written_tower
from mmtune.core.errors import CheckpointError

_HEAD_WIDTH = 64  # of every CLIP transformer that OpenAI published
_VISUAL = "visual."
# The text half and three numbers; of no use for pictures.
_TEXT = re.compile(
    r"^(?:transformer\.|token_embedding\.|ln_final\.|"
    r"(?:positional_embedding|text_projection|logit_scale|input_resolution|context_length|vocab_size)$)"
)
_WHOLE: Mapping[str, str] = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_BLOCK = re.compile(r"^transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)$")
_IN_BLOCK: Mapping[str, str] = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_PROJECTION = "proj"  # into the space shared with text
_JOINED = re.compile(r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")
_FIX = "give the ViT archive that OpenAI published, or its state dict"


def read(path: Path, form: str, request: Request, *, merge: bool, dtype: torch.dtype | None) -> PlainPlan:
    """Plan the conversion of a vision tower alone.

    Raises:
        CheckpointError: Something is missing, unknown, damaged or does not fit.
        UsageError: Any ``--set`` key; the file says everything.
    """
    request.check_settings()
    file = clip_file(path)
    store = open_clip(file)
    tower = tower_of(store, file)
    return PlainPlan(
        format="openai-clip",
        form="vision",
        part=written_tower(tower, dtype),
        tokenizer=None,
        dtype=dtype or next(iter(tower.tensors.values())).dtype,
        sources=(file,),
        reference=OpenAIClipReference(store, tower.config, dtype),
    )


def read_clip_tower(path: Path) -> Tower:
    """The picture half of a CLIP file as a tower by the names of ``CLIPVisionModel``, with its picture preparation.

    Raises:
        CheckpointError: The file is damaged, or no CLIP with a vision transformer.
    """
    file = clip_file(path)
    return tower_of(open_clip(file), file)


def is_clip_file(path: Path) -> bool:
    """Whether a path is, or is a folder with nothing but, one ``.pt`` file with CLIP's picture half."""
    try:
        file = clip_file(path)
        return any(name.startswith("visual.conv1") for name in open_clip(file))
    except CheckpointError:
        return False


def clip_file(path: Path) -> Path:
    """The file itself, or the only ``.pt`` file of a folder.

    Raises:
        CheckpointError: None, or more than one.
    """
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.pt"))
    if len(found) != 1:
        raise CheckpointError(f"The folder holds {len(found)} .pt files, not one.", where=str(path), fix=_FIX)
    return found[0]


def open_clip(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a CLIP file, TorchScript archive or plain state dict.

    Raises:
        CheckpointError: Missing or damaged, or a file that holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointError("The CLIP file is missing.", where=str(path), fix=_FIX)
    if not _is_torchscript(path):
        return open_file(path)
    try:
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    except Exception as error:  # torch raises whatever a damaged archive leads it to
        raise damaged(path, error) from error
    return {name: in_memory(name, tensor, path) for name, tensor in state.items()}


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def tower_of(store: Store, file: Path) -> Tower:
    """The tower that a state dict holds, its sizes read from the tensors.

    Raises:
        CheckpointError: Tensors missing, unknown or of another shape.
    """
    visual = {name.removeprefix(_VISUAL): part for name, part in store.items() if name.startswith(_VISUAL)}
    unknown = [name for name in store if not name.startswith(_VISUAL) and not _TEXT.match(name)]
    if unknown:
        raise not_understood(unknown, store, form="CLIP checkpoint")
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in visual.items():
        if name != _PROJECTION:
            tensors |= _translate(name, tensor)
    found = Tower(_config(visual, file), None, tensors, None, inside=False)
    return checked_tower(found, str(file))


def _translate(name: str, tensor: StoredTensor) -> dict[str, StoredTensor]:
    if name in _WHOLE:
        return {_WHOLE[name]: _renamed(tensor, _WHOLE[name])}
    if (joined := _JOINED.match(name)) and tensor.shape:
        prefix, rows = f"encoder.layers.{joined.group(1)}.self_attn.", tensor.shape[0] // 3
        made = {}
        for place, kind in enumerate(("q_proj", "k_proj", "v_proj")):
            target = f"{prefix}{kind}.{joined.group(2)}"
            made[target] = derived(
                tensor, (rows, *tensor.shape[1:]), lambda place=place: tensor.read()[place * rows : (place + 1) * rows],
                target,
            )  # fmt: skip
        return made
    match = _BLOCK.match(name)
    if match is None or match.group(2) not in _IN_BLOCK:
        raise not_understood([tensor.name], {tensor.name: tensor}, form="CLIP vision transformer")
    target = f"encoder.layers.{match.group(1)}.{_IN_BLOCK[match.group(2)]}.{match.group(3)}"
    return {target: _renamed(tensor, target)}


def _renamed(tensor: StoredTensor, name: str) -> StoredTensor:
    return derived(tensor, tensor.shape, tensor.read, name)


def _config(visual: Store, file: Path) -> dict[str, Any]:
    for name, axes in (
        ("conv1.weight", 4),
        ("positional_embedding", 2),
        ("transformer.resblocks.0.mlp.c_fc.weight", 2),
    ):
        if name not in visual or len(visual[name].shape) != axes:
            raise CheckpointError(f"Tensor '{_VISUAL}{name}' is missing or misshapen.", where=str(file), fix=_FIX)
    width, _, patch, _ = visual["conv1.weight"].shape
    positions = visual["positional_embedding"].shape[0] - 1
    side = round(positions**0.5)
    if side * side != positions or width % _HEAD_WIDTH:
        raise CheckpointError(
            f"Width {width} with {positions} patches is no tower of CLIP's square pictures and heads of {_HEAD_WIDTH}.",
            where=str(file),
            fix=_FIX,
        )
    layers = {match.group(1) for match in map(_BLOCK.match, visual) if match}
    projection = visual.get(_PROJECTION)
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": visual["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // _HEAD_WIDTH,
        "image_size": side * patch,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": projection.shape[-1] if projection is not None else width,
    }
