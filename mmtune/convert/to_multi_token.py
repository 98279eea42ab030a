"""Writes multi_token checkpoints as its own code saves them: LoRA and projectors, without base and encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmtune.convert.encoders import PUBLISHED
from mmtune.convert.layout import Layout
from mmtune.convert.plan import OriginalFiles, Part, PlainPlan, Plan, Request
from mmtune.convert.projectors import LORA_PREFIX, PLAIN_PREFIX, original_entries
from mmtune.convert.staging import Stage
from mmtune.convert.to_original import FORM, adapter_config, choose_form, kept_files, require_method
from mmtune.convert.writer import Entry
from mmtune.core.errors import NotPossibleError

_FORMAT = "multi-token"
_FORMS = ("lora", "projector", "full")
_NAMES = {published.modality: name for name, published in PUBLISHED.items()}
_DECODERS = {"mistral": "MistralLMMForCausalLM"}  # those that the published code has a class for
_PICTURES: Mapping[str, Mapping[str, Any]] = {
    "vision_clip": {"select": "patch", "layer": -2},
    "vision_clip_pool": {"select": "pool"},
}


def arrange(plan: Plan | PlainPlan, stage: Stage | None, request: Request) -> Layout:
    """The layout of a multi_token checkpoint.

    Raises:
        NotPossibleError: Another method, or modalities, decoders and forms that its code does not know.
        UsageError: An unknown ``--set`` key or form.
    """
    plan, stage = require_method(plan, stage, _FORMAT)
    kept = kept_files(plan, _FORMAT)
    asked = {key: value for key, value in request.settings.items() if key == FORM}  # the others are the reader's
    form = choose_form(plan, replace(request, settings=asked), kept, _FORMS)
    names = [_original_name(name) for name in stage.model.modalities]
    prefix = LORA_PREFIX if form == "lora" or (kept is not None and kept.facts.get("lora_prefix")) else PLAIN_PREFIX
    method = plan.part("")
    entries: list[Entry] = []
    for modality, name in zip(stage.model.modalities, names, strict=True):
        entries += original_entries(modality, name, method.entries if method is not None else (), prefix=prefix)
    language = plan.part("language_model")
    if form == "full" and language is not None:
        entries += language.entries
    config = dict(kept.config) if kept is not None else _config(stage, names)
    parts = [Part("", "non_lora_trainables", tuple(entries), {"config.json": config}, suffix="bin")]
    lora = plan.part("lora")
    if lora is not None:
        suffix = str(kept.facts.get("adapter_suffix", "safetensors")) if kept is not None else "safetensors"
        documents = {"adapter_config.json": adapter_config(lora, kept, plan)}
        parts.append(replace(lora, folder="", documents=documents, suffix=suffix))
    options = _options(plan, stage, names, form)
    return Layout(tuple(parts), "original", _FORMAT, options=options, notes=_notes(plan, stage, kept, form))


def _original_name(modality: str) -> str:
    if modality not in _NAMES:
        raise NotPossibleError(
            f"multi_token's code has no modality '{modality}'.", where="--to", fix="use --to mmtune", allowed=_NAMES
        )
    return _NAMES[modality]


def _config(stage: Stage, names: list[str]) -> dict[str, Any]:
    """config.json of a checkpoint that was made here."""
    values = stage.model.language_model.config.to_dict()
    decoder = str(values["model_type"])
    if decoder not in _DECODERS:
        raise NotPossibleError(
            f"multi_token's code has no class for a '{decoder}' language model.", where="--to", fix="use --to mmtune"
        )
    builder = names[0]
    image = stage.model.modalities.get("image")
    if image is not None:
        settings = image.settings.model_dump(mode="json")
        builders = [key for key, wanted in _PICTURES.items() if wanted.items() <= settings.items()]
        if not builders:
            raise NotPossibleError(
                "multi_token's code reads pictures from the last but one layer or pooled, this model otherwise.",
                where="--to",
                fix="use --to mmtune",
            )
        builder = builders[0] if names == ["vision_clip"] else builder
    added = {"model_type": f"{decoder}-lmm", "model_cls": _DECODERS[decoder], "modality_builder": builder}
    return {**values, **added, "modalities": names}


def _options(plan: Plan, stage: Stage, names: list[str], form: str) -> dict[str, Any]:
    """How the check opens what was written, which holds neither base nor encoders."""
    options: dict[str, Any] = {"format": _FORMAT, "form": form, "encoders": {}, "settings": {}}
    language = plan.part("language_model")
    options["llm"] = str(language.origin) if language is not None else plan.base["source"]
    for modality, name in zip(stage.model.modalities, names, strict=True):
        part = plan.part(f"encoders/{modality}")
        source = part.origin if part is not None else plan.encoders[modality]["source"]
        if source is not None:
            options["encoders"][name] = str(source)
    if _is_padded(stage):
        options["settings"] = {"vision_clip.pad_to_square": True}
    return options


def _is_padded(stage: Stage) -> bool:
    image = stage.model.modalities.get("image")
    return image is not None and image.settings.model_dump(mode="json")["aspect"] == "pad"


def _notes(plan: Plan, stage: Stage, kept: OriginalFiles | None, form: str) -> tuple[str, ...]:
    found = ["The format holds neither the language model nor the encoders; they are named, not copied."]
    if form != "lora":
        found.append("multi_token's own loader also wants a LoRA (adapter_model), which this model does not have.")
    if _is_padded(stage):
        found.append("The format does not say that pictures are padded: give --set vision_clip.pad_to_square=true.")
    return tuple(found)
