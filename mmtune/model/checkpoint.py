"""A checkpoint's files: written whole, read exactly.

``config.json``, ``adapter.safetensors`` (the method), ``lora/`` (PEFT's format), ``language_model/`` and
``encoders/<name>/`` only where these were trained or belong to the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmtune.core.errors import CheckpointError
from mmtune.model.configuration import MMTuneConfig
from mmtune.model.lora import load_lora, save_lora, without_lora
from mmtune.model.sources import relative_source
from mmtune.model.weights import (
    LANGUAGE,
    METHOD,
    probed_names,
    save_language_model,
    saves_language_model,
    written_weights,
)

if TYPE_CHECKING:
    from mmtune.model.modeling import MMTuneModel

ADAPTER_FILE = "adapter.safetensors"
LANGUAGE_FOLDER = "language_model"
ENCODER_FOLDER = "encoders"


def read_config(folder: str | Path) -> MMTuneConfig:
    """Read ``config.json`` of a checkpoint.

    Raises:
        CheckpointError: No folder, no such file, damaged JSON, or the configuration of something else.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"No checkpoint at '{folder}': config.json is missing.",
            where=str(path),
            fix="give the model/ folder of a run, or a folder written by mmtune convert",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"config.json is damaged: {error}", where=str(path), fix="restore the file") from error
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind != MMTuneConfig.model_type:
        raise CheckpointError(
            f"'{folder}' is a '{kind}', no mmtune checkpoint.",
            where=str(path),
            fix=f"run: mmtune convert {folder} --output DIR",
        )
    return MMTuneConfig.from_dict(values)


def load_model(source: str, **options: Any) -> MMTuneModel:
    """Load a checkpoint; the options are those of ``mmtune.model.build.load_model``."""
    from mmtune.model.build import load_model as build_from_checkpoint

    return build_from_checkpoint(source, **options)


def save_model(model: MMTuneModel, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write what was trained, and references to what was not.

    Args:
        weights: What ``written_weights`` gathered, for a model that several processes share out.
    """
    weights = written_weights(model) if weights is None else weights
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    config = MMTuneConfig.from_dict(model.config.to_dict())
    config.architectures = ["MMTuneModel"]
    if saves_language_model(model):
        save_language_model(model, target / LANGUAGE_FOLDER, weights)
        config.base = {**config.base, "source": LANGUAGE_FOLDER, "revision": None}
    else:
        config.base = {**config.base, "source": relative_source(config.base["source"], target)}
    config.base = {**config.base, "probe": probe(model, weights)}
    roles = model.roles()
    for name, encoder in model.encoders.items():
        entry = dict(config.encoders[name])
        if any(parameter.requires_grad for parameter in roles[f"encoder.{name}"]) or name in model.owned_encoders:
            with without_lora(encoder):
                model.modalities[name].save_source(encoder, str(target / ENCODER_FOLDER / name))
            entry.update(source=f"{ENCODER_FOLDER}/{name}", revision=None)
        else:
            entry.update(source=relative_source(entry["source"], target))
        config.encoders = {**config.encoders, name: entry}
    own = {name.removeprefix(METHOD): tensor for name, tensor in weights.items() if name.startswith(METHOD)}
    save_file(_plain(own), target / ADAPTER_FILE, metadata={"format": "pt"})
    save_lora(model, target, weights)
    config.save_pretrained(target)


def load_method_weights(method: nn.Module, path: Path) -> None:
    """Load exactly the method's own weights.

    Raises:
        CheckpointError: The file is missing or truncated, or its names or shapes are not those of the method.
    """
    weights = read_tensors(path)
    owned = method.state_dict()
    _same_names(set(weights), set(owned), path)
    for name, tensor in weights.items():
        if tensor.shape != owned[name].shape:
            raise CheckpointError(
                f"'{name}' is {list(tensor.shape)} in the file, the settings ask for {list(owned[name].shape)}.",
                where=str(path),
                fix="use the config.json that was saved with it",
            )
    method.load_state_dict(weights)


def load_adapters(model: MMTuneModel, folder: Path, *, weights: bool = True) -> None:
    """Load what a checkpoint has besides its base: the method and LoRA, or on the meta device only their shapes.

    Raises:
        CheckpointError: A file is missing or damaged, or its names or shapes are not those of the model.
    """
    if weights:
        load_method_weights(model.method, folder / ADAPTER_FILE)
    load_lora(model, folder, read_tensors if weights else None, _same_names)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: Missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing.", where=str(path), fix="copy the whole checkpoint folder")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} is damaged: {error}", where=str(path), fix="copy or save it again"
        ) from error


def probe(model: MMTuneModel, weights: Mapping[str, Tensor] | None = None) -> list[float]:
    """A few weights of the frozen base, by which another base is recognised."""
    weights = written_weights(model) if weights is None else weights
    values = []
    for name in probed_names(model):
        flat = weights[f"{LANGUAGE}{name}"].flatten()
        places = torch.linspace(0, flat.numel() - 1, 8, dtype=torch.float64).long()
        values += [round(float(value), 6) for value in flat[places.to(flat.device)].float()]
    return values


def check_probe(model: MMTuneModel, where: str) -> None:
    """Raise when the loaded base is not the one the checkpoint was made with.

    Raises:
        CheckpointError: Another base.
    """
    expected = model.config.base.get("probe")
    if expected is None:
        return
    found = probe(model)
    known = min(len(found), len(expected))  # fewer where either base was quantised
    if not torch.allclose(torch.tensor(found[:known]), torch.tensor(expected[:known]), rtol=2e-2, atol=1e-3):
        raise CheckpointError(
            f"The base '{model.config.base['source']}' is not the one this checkpoint was trained on.",
            where=where,
            fix="give the original base, or restore it at the path that config.json names",
        )


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name].detach().contiguous().cpu() for name in sorted(tensors)}


def _same_names(found: set[str], owned: set[str], path: Path) -> None:
    if found == owned:
        return
    missing, unexpected = sorted(owned - found), sorted(found - owned)
    raise CheckpointError(
        f"{path.name} does not fit: missing {_short(missing)}; unexpected {_short(unexpected)}.",
        where=str(path),
        fix="use the config.json that was saved with it, or convert the checkpoint again",
    )


def _short(names: list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
