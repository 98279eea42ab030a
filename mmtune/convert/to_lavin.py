"""Writes LaVIN's adapter as its own training saves it: ``checkpoint-N.pth`` with its tensors and arguments."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmtune.convert.lavin import INSIDE, OUTSIDE, VISUAL
from mmtune.convert.layout import Layout
from mmtune.convert.plan import Part, PlainPlan, Plan, Request, change
from mmtune.convert.staging import Stage
from mmtune.convert.to_original import kept_files, require_method
from mmtune.convert.writer import Entry
from mmtune.core.errors import NotPossibleError, UsageError
from mmtune.methods.lavin import LaVINSettings

_PREFIX = "module."  # a distributed run saves it so, as all published scripts do
_ADAPTER = re.compile(r"^adapters\.(\w+)\.(\d+)\.(.+)\.(weight|bias)$")
_INNER = {ours: theirs for theirs, ours in INSIDE.items()}
_OUTER = {ours: theirs for theirs, ours in OUTSIDE.items()}
_FIXED = {"select": "taps", "tap_every": 4, "aspect": "stretch", "statistics": "imagenet"}
_DECODERS, _ENCODERS = ("llama",), ("clip_vision_model",)
_NOTE = "LaVIN's code reads LLaMA and CLIP from their own files; the adapter alone was written."


def arrange(plan: Plan | PlainPlan, stage: Stage | None, request: Request) -> Layout:
    """The layout of a LaVIN checkpoint: one file.

    Raises:
        NotPossibleError: Another method, or a base, an encoder or settings that LaVIN's code does not know.
        UsageError: Any ``--set`` key.
    """
    plan, stage = require_method(plan, stage, "lavin")
    if request.settings and plan.format != "lavin":
        raise UsageError("There is nothing to set for this target.", where="--set", fix="leave it out")
    settings = stage.model.config.settings
    _refuse_foreign(stage, settings)
    kept = kept_files(plan, "lavin")
    facts: Mapping[str, Any] = kept.facts if kept is not None else {}
    prefix = _PREFIX if facts.get("distributed", True) else ""
    epoch = int(facts.get("epoch") or 0)
    said = {**(kept.config if kept is not None else {}), **_arguments(stage, settings)}

    def wrap(state: dict[str, Tensor]) -> dict[str, Any]:
        return {"model": state, "epoch": epoch, "args": argparse.Namespace(**said)}

    method, language, tower = (plan.part(folder) for folder in ("", "language_model", "encoders/image"))
    entries = tuple(_entry(entry, prefix) for entry in (method.entries if method is not None else ()))
    name = f"checkpoint-{epoch}"
    options = {
        "format": "lavin",
        "form": "full",
        "file": f"{name}.pth",
        "llm": str(language.origin) if language is not None and language.origin else str(plan.base["source"]),
        "vision": str(tower.origin) if tower is not None and tower.origin else str(plan.origins["image"]),
    }
    part = Part("", name, entries, sharded=False, suffix="pth", wrap=wrap)
    return Layout((part,), "original", "lavin", options=options, notes=(_NOTE,))


def _refuse_foreign(stage: Stage, settings: Mapping[str, Any]) -> None:
    fixed = {name: LaVINSettings.model_fields[name].default for name in ("tokens", "present", "absent", "dropout")}
    image = stage.model.modalities["image"].settings.model_dump()
    wanted = [("model.settings", fixed, settings), ("the image settings", _FIXED, image)]
    for where, expected, found in wanted:
        for key, value in expected.items():
            if found[key] != value:
                raise NotPossibleError(
                    f"LaVIN's code has {key} {value!r}, {where} have {found[key]!r}.",
                    where="--to",
                    fix="use --to mmtune",
                )
    kinds = (
        (str(stage.model.language_model.config.model_type), _DECODERS, "language model"),
        (str(stage.model.modalities["image"].encoder_config.model_type), _ENCODERS, "encoder"),  # type: ignore[attr-defined]
    )
    for kind, known, what in kinds:
        if kind not in known:
            raise NotPossibleError(
                f"LaVIN's code has no '{kind}' {what}.", where="--to", fix="use --to mmtune", allowed=known
            )


def _arguments(stage: Stage, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "adapter_type": "attn",
        "visual_adapter_type": "router",
        "adapter_dim": settings["adapter_dim"],
        "adapter_scale": settings["scale"],
        "temperature": settings["temperature"],
        "hidden_proj": settings["hidden"],
        "n_prompt": stage.model.modalities["image"].num_positions,
    }


def _entry(entry: Entry, prefix: str) -> Entry:
    """The original's tensor: matrices of adapters but the router's are convolutions of length 1."""
    name = original_name(entry.name)
    convolution = ".conv_" in name and ".adapter_attn." in name and name.endswith(".weight")
    shape = (*entry.shape, 1) if convolution else tuple(entry.shape)
    return change(prefix + name, shape, entry.dtype, lambda: entry.read().reshape(shape))


def original_name(name: str) -> str:
    """The original's name of one of our tensors, the reverse of :func:`mmtune.convert.lavin.our_name`."""
    if match := _ADAPTER.match(name):
        where, layer, module, kind = match.groups()
        top = "layers." if where == "language" else VISUAL
        return f"{top}{layer}.adapter_attn.{_INNER[module]}.{kind}"
    module, _, kind = name.rpartition(".")
    return f"{_OUTER[module]}.{kind}"
