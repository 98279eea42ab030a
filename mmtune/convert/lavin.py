"""Reads LaVIN: the adapter that its training saves, with the LLaMA and the CLIP that it stands on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch
from pydantic import Field

from mmtune.convert.language import Language
from mmtune.convert.lavin_source import AdapterFile, find_adapter, find_language, find_tower, open_adapter
from mmtune.convert.lavin_vicuna import with_vicuna
from mmtune.convert.plan import OriginalFiles, Part, Plan, Request, change
from mmtune.convert.reference_lavin import LaVINReference, Mixing
from mmtune.convert.tensors import StoredTensor, not_understood, require_weight
from mmtune.convert.vision import Tower
from mmtune.convert.writer import Entry
from mmtune.core.config import Settings, parse_settings
from mmtune.core.errors import CheckpointError, NotPossibleError, UsageError

MERGING = "LaVIN's adapters are mixed anew for every sample: there is no single set of weights to merge them into."
TEMPLATE = "lavin"
VISUAL = "backbone.visual.transformer.resblocks."
_WIDE, _WIDE_TEMPERATURE, _TEMPERATURE = 5120, 5.0, 10.0  # the 13B model, and what the scripts give each
_PLAIN = (bool, int, float, str, list, type(None))  # arguments that JSON can hold
# Names inside an adapter -> ours.
INSIDE: Mapping[str, str] = {
    "conv_A": "down",
    "conv_B": "up.0",
    "conv_D": "up.1",
    "expert_weights": "router",
}
OUTSIDE: Mapping[str, str] = {
    "adapter_proj.conv_A": "projector.0",
    "adapter_proj.conv_B": "projector.2",
    "adapter_modality_embedding": "modality_embedding",
}
_ADAPTER = re.compile(rf"^(layers|{re.escape(VISUAL[:-1])})\.(\d+)\.adapter_attn\.(\w+)\.(weight|bias)$")


class Choices(Settings):
    """``--set lavin.KEY=VALUE``: what an adapter's tensors do not hold and its arguments may lack."""

    temperature: float | None = Field(None, gt=0)
    scale: float | None = None
    tap_every: int = Field(4, ge=1)
    routing: Literal["per_sample", "batch0"] = "per_sample"
    vicuna_legacy_delta: bool | None = None
    vicuna_delta: str | None = None


def read(path: Path, form: str, request: Request, *, merge: bool, dtype: torch.dtype | None) -> Plan:
    """Plan the conversion of a LaVIN checkpoint.

    Args:
        path: The adapter's ``.pth``, or a folder that holds it and may hold LLaMA and CLIP beside it.
        form: Of no meaning here.
        merge: Always refused, with the reason.
        dtype: Precision to write; as stored when None.

    Raises:
        CheckpointError: Something is missing, unknown, damaged or does not fit.
        NotPossibleError: ``merge``, or adapters at other places than those of the published models.
    """
    if merge:
        raise NotPossibleError(MERGING, where="--to merged", fix="use --to mmtune")
    if request.encoders:
        raise UsageError("LaVIN has one encoder, its CLIP.", where="--encoder", fix="give it with --vision")
    choices = parse_settings(Choices, _bare(request.settings), where="--set lavin")
    adapter = open_adapter(find_adapter(path))
    _refuse_variants(adapter)
    language, place = find_language(adapter, path, request)
    language, notes = with_vicuna(language, adapter, choices.vicuna_legacy_delta, choices.vicuna_delta)
    copied = place.hub_id is None
    tower = find_tower(adapter, path, request)
    temperature, more = _temperature(choices, adapter, language)
    scale = choices.scale if choices.scale is not None else _number(adapter, "adapter_scale", 1.0)
    part, sizes = _method_part(adapter, language, tower, dtype)
    parts = [part, tower.part(dtype), language.part(dtype) if copied else None]
    image = {"select": "taps", "tap_every": choices.tap_every, "aspect": "stretch", "statistics": "imagenet"}
    length = adapter.arguments.get("max_seq_len")
    return Plan(
        format="lavin",
        form="adapter",
        method="lavin",
        parts=tuple(part for part in parts if part is not None),
        base={
            "source": "language_model" if copied else place.hub_id,
            "revision": None if copied else place.revision,
            "probe": None,
        },
        encoders={"image": {**tower.source, "settings": image}},
        origins={"image": tower.place.folder if tower.place is not None else next(iter(tower.tensors.values())).file},
        settings={**sizes, "scale": scale, "temperature": temperature, "routing": choices.routing},
        tokenizer=language.tokenizer or language.folder,
        legacy_tokenizer=False,
        template=TEMPLATE,
        dtype=dtype or language.dtype,
        max_length=length - 1 if isinstance(length, int) else None,  # the decision token counted there
        notes=(*notes, *more, *_feature_notes(adapter, tower, choices)),
        sources=tuple(dict.fromkeys((adapter.path, language.folder))),
        reference=LaVINReference(
            language, tower, adapter.tensors, Mixing(scale, temperature, choices.tap_every), dtype, copied=copied
        ),
        original=OriginalFiles(
            "lavin",
            "adapter",
            {key: value for key, value in adapter.arguments.items() if isinstance(value, _PLAIN)},
            facts={"distributed": adapter.distributed, "epoch": adapter.epoch},
        ),
    )


def _bare(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("lavin."): value for key, value in settings.items()}


def _refuse_variants(adapter: AdapterFile) -> None:
    said = adapter.arguments
    kinds = {"adapter_type": ("attn", said.get("adapter_type", "attn"))}
    kinds["visual_adapter_type"] = ("router", said.get("visual_adapter_type", "router"))
    for key, (read_here, found) in kinds.items():
        if found != read_here:
            raise NotPossibleError(
                f"{key} '{found}' is not read; no published model has it.",
                where=str(adapter.path),
                fix=f"use a checkpoint that was trained with --{key} {read_here}",
            )
    for name in adapter.tensors:
        if ".adapter_mlp." in name:
            raise NotPossibleError(
                f"Tensor '{name}' is of an adapter before a feed-forward, which no published model has.",
                where=str(adapter.path),
                fix="use a checkpoint that was trained with --adapter_type attn --visual_adapter_type router",
            )


def _temperature(choices: Choices, adapter: AdapterFile, language: Language) -> tuple[float, tuple[str, ...]]:
    given = choices.temperature if choices.temperature is not None else _number(adapter, "temperature", None)
    if given is not None:
        return given, ()
    value = _WIDE_TEMPERATURE if language.hidden_size == _WIDE else _TEMPERATURE
    note = f"The file does not say the temperature of the routers: {value:g} was taken (--set lavin.temperature=…)."
    return value, (note,)


@overload
def _number(adapter: AdapterFile, key: str, default: float) -> float: ...
@overload
def _number(adapter: AdapterFile, key: str, default: None) -> float | None: ...
def _number(adapter: AdapterFile, key: str, default: float | None) -> float | None:
    value = adapter.arguments.get(key, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise CheckpointError(
            f"The arguments of the training say {key} {value!r}, which is no number.",
            where=str(adapter.path),
            fix=f"give it with --set lavin.{key.removeprefix('adapter_')}=…",
        )
    return None if value is None else float(value)


def _feature_notes(adapter: AdapterFile, tower: Tower, choices: Choices) -> tuple[str, ...]:
    taps = max(1, int(tower.config["num_hidden_layers"]) // choices.tap_every)
    said = adapter.arguments.get("n_prompt")
    if said in (None, taps):
        return ()
    return (f"n_prompt is {said} in the arguments; the tower gives {taps} features a picture, which is what counts.",)


def _method_part(
    adapter: AdapterFile, language: Language, tower: Tower, dtype: torch.dtype | None
) -> tuple[Part, dict[str, int]]:
    """The method's tensors by our names, and the two sizes that they are read from."""
    tensors = adapter.tensors
    down = tensors.get("layers.0.adapter_attn.conv_A.weight")
    inner = tensors.get("adapter_proj.conv_A.weight")
    for name, found in (("layers.0.adapter_attn.conv_A.weight", down), ("adapter_proj.conv_A.weight", inner)):
        if found is None or len(found.shape) < 2:
            raise CheckpointError(f"Tensor '{name}' is missing.", where=str(adapter.path), fix="copy the file again")
    sizes = {"adapter_dim": down.shape[0], "hidden": inner.shape[0]}  # type: ignore[union-attr]
    expected = _expected(language, tower, **sizes)
    if unknown := [name for name in tensors if name not in expected]:
        raise not_understood(unknown, tensors, form="LaVIN adapter on this LLaMA and this CLIP")
    if missing := [name for name in expected if name not in tensors]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"Tensor '{missing[0]}'{more} is missing: the adapter does not cover this LLaMA and this CLIP.",
            where=str(adapter.path),
            fix="give the LLaMA and the CLIP that it was trained with: --llm, --vision",
        )
    for name, shape in expected.items():
        require_weight(tensors[name], shape, because="the LLaMA and the CLIP given")
    entries = sorted((_entry(name, tensor, dtype) for name, tensor in tensors.items()), key=lambda entry: entry.name)
    return Part("", "adapter", tuple(entries), sharded=False), sizes


def _entry(name: str, tensor: StoredTensor, dtype: torch.dtype | None) -> Entry:
    shape = tensor.shape[:-1] if len(tensor.shape) == 3 else tensor.shape  # convolutions of length 1
    return change(our_name(name), shape, dtype or tensor.dtype, lambda: tensor.read().reshape(shape))


def our_name(name: str) -> str:
    """The name in a written folder of an original tensor."""
    if match := _ADAPTER.match(name):
        where = "language" if match.group(1) == "layers" else "image"
        return f"adapters.{where}.{match.group(2)}.{INSIDE[match.group(3)]}.{match.group(4)}"
    module, _, kind = name.rpartition(".")
    return f"{OUTSIDE[module]}.{kind}"


def _expected(language: Language, tower: Tower, adapter_dim: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of an adapter and its shape."""
    depth, width = int(tower.config["num_hidden_layers"]), int(tower.config["hidden_size"])
    outer = language.hidden_size
    found: dict[str, tuple[int, ...]] = {}
    for prefix, layers, size in (("layers.", language.num_layers, outer), (VISUAL, depth, width)):
        for layer in range(layers):
            found |= {
                f"{prefix}{layer}.adapter_attn.{name}": shape for name, shape in _shapes(size, adapter_dim).items()
            }
    return found | {
        "adapter_proj.conv_A.weight": (hidden, width),
        "adapter_proj.conv_A.bias": (hidden,),
        "adapter_proj.conv_B.weight": (outer, hidden),
        "adapter_proj.conv_B.bias": (outer,),
        "adapter_modality_embedding.weight": (2, outer),
    }


def _shapes(width: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        "conv_A.weight": (inner, width, 1),
        "conv_A.bias": (inner,),
        "conv_B.weight": (width, inner // 2, 1),
        "conv_B.bias": (width,),
        "conv_D.weight": (width, inner // 2, 1),
        "conv_D.bias": (width,),
        "expert_weights.weight": (2, width),
        "expert_weights.bias": (2,),
    }
