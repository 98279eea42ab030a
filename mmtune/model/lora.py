"""LoRA on the parts of a model, by PEFT: where it goes, and its files, one folder a part in PEFT's own format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mmtune.core.errors import NotPossibleError, UsageError
from mmtune.hosts.host import Host

if TYPE_CHECKING:
    from mmtune.model.modeling import MMTuneModel

LANGUAGE_PART = "language_model"
ENCODER_PARTS = "encoders"
LANGUAGE_LINEAR, ENCODER_LINEAR = "language-linear", "encoder-linear"
LORA_FOLDER, _ENCODER_FOLDER = "lora", "encoder_lora"
_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


def targets_by_part(model: MMTuneModel, targets: str | list[str]) -> dict[str, list[str]]:
    """Module names of each part that get LoRA.

    Args:
        targets: ``language-linear`` and ``encoder-linear`` stand for the linear maps inside the blocks of the language
            model and of every encoder; anything else is the name of a module of the language model. Encoders are
            reached by their symbol alone.

    Raises:
        UsageError: A name that the language model does not have.
        NotPossibleError: An encoder without linear maps in blocks.
    """
    found: dict[str, list[str]] = {}
    for target in [targets] if isinstance(targets, str) else targets:
        if target == LANGUAGE_LINEAR:
            found.setdefault(LANGUAGE_PART, []).extend(_linear_names(model.language_model))
        elif target == ENCODER_LINEAR:
            for name, encoder in model.encoders.items():
                found[f"{ENCODER_PARTS}.{name}"] = _encoder_names(name, encoder)
        else:
            found.setdefault(LANGUAGE_PART, []).extend(_named(model.language_model, target))
    return {part: list(dict.fromkeys(names)) for part, names in found.items()}


def largest_rank(model: nn.Module) -> int:
    """The rank from which on a LoRA can be any change of all its targets: the greatest of their smaller sides."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    return max((min(layer.in_features, layer.out_features) for layer in layers), default=0)


def _linear_names(module: PreTrainedModel) -> list[str]:
    blocks = Host(module).blocks()
    wanted = {id(inner) for inner in blocks.modules() if isinstance(inner, (nn.Linear, Conv1D))}
    return [name for name, inner in module.named_modules() if id(inner) in wanted]


def _encoder_names(name: str, encoder: nn.Module) -> list[str]:
    found = _linear_names(encoder) if isinstance(encoder, PreTrainedModel) else []
    if not found:
        fix = "tune.targets: language-linear"
        raise NotPossibleError(f"The encoder '{name}' has no linear maps for LoRA.", where="tune.targets", fix=fix)
    return found


def _named(module: nn.Module, target: str) -> list[str]:
    """A full name, or the last part of names as PEFT takes them."""
    linear = [name for name, inner in module.named_modules() if isinstance(inner, (nn.Linear, Conv1D))]
    found = [name for name in linear if name == target or name.endswith(f".{target}")]
    if not found:
        raise UsageError(
            f"Unknown LoRA target '{target}'. Allowed: {LANGUAGE_LINEAR}, {ENCODER_LINEAR}, names of linear modules.",
            where="tune.targets",
            fix=f"use '{LANGUAGE_LINEAR}'",
        )
    return found


def parts_with_lora(model: MMTuneModel) -> list[str]:
    """``language_model`` and ``encoders.<name>``, where they have LoRA."""
    parts = [LANGUAGE_PART, *(f"{ENCODER_PARTS}.{name}" for name in model.encoders)]
    return [part for part in parts if any(name.startswith(f"{part}.") for name in model.lora_names)]


def save_lora(model: MMTuneModel, target: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the LoRA of every part."""
    for part in parts_with_lora(model):
        folder = _folder(target, part)
        folder.mkdir(parents=True, exist_ok=True)
        module: PreTrainedModel = model.get_submodule(part)
        module.peft_config["default"].save_pretrained(str(folder))
        path = folder / "adapter_config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        values["target_modules"] = sorted(values["target_modules"])  # PEFT keeps a set, whose order changes
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        prefix = f"{part}."
        own = {name.removeprefix(prefix): weights[name] for name in model.lora_names if name.startswith(prefix)}
        _save({f"{_PEFT_PREFIX}{plain_name(name)}": tensor for name, tensor in own.items()}, folder / _WEIGHTS)


def load_lora(
    model: MMTuneModel,
    folder: Path,
    read: Callable[[Path], dict[str, Tensor]] | None,
    same_names: Callable[[set[str], set[str], Path], None],
) -> None:
    """Inject the LoRA of every part that has a folder, and load it name by name.

    Args:
        read: Reads a file of tensors; None injects without weights, for models on the meta device.
        same_names: Raises when names found and names owned differ.
    """
    for part in (LANGUAGE_PART, *(f"{ENCODER_PARTS}.{name}" for name in model.encoders)):
        place = _folder(folder, part)
        if not place.is_dir():
            continue
        model.inject_lora(LoraConfig.from_pretrained(str(place)), part)
        if read is None:
            continue
        path = place / _WEIGHTS
        found = {name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in read(path).items()}
        named = model.get_submodule(part).named_parameters()
        owned = {plain_name(name): value for name, value in named if f"{part}.{name}" in model.lora_names}
        same_names(set(found), set(owned), path)
        with torch.no_grad():
            for name, parameter in owned.items():
                parameter.copy_(found[name])


def plain_name(name: str) -> str:
    """PEFT's files leave the adapter's name out."""
    return name.replace(".default", "")


@contextmanager
def without_lora(module: nn.Module) -> Iterator[None]:
    """A part as it was before LoRA, while it is saved: transformers saves nothing but the adapter otherwise."""
    replaced = [(name, inner) for name, inner in module.named_modules() if isinstance(inner, BaseTunerLayer)]
    loaded = module.__dict__.get("_hf_peft_config_loaded", False)
    try:
        for name, inner in replaced:
            _put(module, name, inner.get_base_layer())
        module._hf_peft_config_loaded = False
        yield
    finally:
        for name, inner in replaced:
            _put(module, name, inner)
        module._hf_peft_config_loaded = loaded


def _put(module: nn.Module, name: str, inner: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, inner)


def _folder(target: Path, part: str) -> Path:
    kind, _, name = part.partition(".")
    return target / LORA_FOLDER if kind == LANGUAGE_PART else target / _ENCODER_FOLDER / name


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    plain = {name: tensors[name].detach().contiguous().cpu() for name in sorted(tensors)}
    save_file(plain, path, metadata={"format": "pt"})
