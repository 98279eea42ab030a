"""What writing a LLaVA-like checkpoint has in common: its forms, its files, and its tensors around the projector."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.convert.damage import read_json
from mmtune.convert.layout import Layout, renamed
from mmtune.convert.plan import OriginalFiles, Part, PlainPlan, Plan, Request, change
from mmtune.convert.staging import Stage
from mmtune.convert.tokenizer_files import NAMES as TOKENIZER_FILES
from mmtune.convert.writer import Entry
from mmtune.core.errors import NotPossibleError, UsageError

FORM = "form"
_LANGUAGE, _TOWER, _LORA = "language_model", "encoders/image", "lora"
_INSIDE = "model.vision_tower.vision_tower."
_INV_FREQ = re.compile(r"rotary_emb\.inv_freq$")
_ADAPTER_PREFIX = "base_model.model."
_MODEL, _PROJECTOR = "model.", "model.mm_projector."


def require_method(plan: Plan | PlainPlan, stage: Stage | None, format: str) -> tuple[Plan, Stage]:
    """The plan of a checkpoint with this method.

    Raises:
        NotPossibleError: Another method, or a plain model.
    """
    if isinstance(plan, PlainPlan) or stage is None:
        raise NotPossibleError(
            f"A '{plan.form}' model alone cannot be written as '{format}'.", where="--to", fix="use --to hf"
        )
    if plan.method != format.replace("-", "_"):
        raise NotPossibleError(
            f"A '{plan.method}' checkpoint cannot be written as '{format}': the methods have different weights.",
            where="--to",
            fix=f"use --to {plan.method.replace('_', '-')} or --to mmtune",
        )
    return plan, stage


def kept_files(plan: Plan, format: str) -> OriginalFiles | None:
    """What the source said of itself, when it was in this very format."""
    return plan.original if plan.original is not None and plan.original.format == format else None


def choose_form(plan: Plan, request: Request, kept: OriginalFiles | None, allowed: tuple[str, ...]) -> str:
    """The form to write: as asked with ``--set form=…``, that of the source, or what its parts allow.

    Raises:
        UsageError: No such form.
        NotPossibleError: A form for which parts are missing.
    """
    unknown = sorted(set(request.settings) - {FORM})
    if unknown:
        raise UsageError(f"Unknown setting '{unknown[0]}' for this target.", where="--set", fix=f"use {FORM}=NAME")
    has = {folder for folder in (_LANGUAGE, _LORA) if plan.part(folder) is not None}
    default = kept.form if kept is not None else ("full" if _LANGUAGE in has else "projector")
    form = "lora" if _LORA in has else "full" if default == "lora" else default
    form = str(request.settings.get(FORM, form))
    if form not in allowed:
        raise UsageError(f"No form '{form}'.", where="--set form", fix=f"use one of: {', '.join(allowed)}")
    if form == "full" and (_LANGUAGE not in has or _LORA in has):
        reason = "a LoRA is not folded into it" if _LORA in has else "only the name of its language model is here"
        raise NotPossibleError(
            f"A full checkpoint cannot be written: {reason}.", where="--set form", fix="convert with --to merged first"
        )
    if (form == "lora") != (_LORA in has):
        fix = "use --set form=lora" if _LORA in has else "use --set form=full or form=projector"
        raise NotPossibleError(f"The form '{form}' does not hold these weights.", where="--set form", fix=fix)
    return form


def arrange_original(
    plan: Plan,
    stage: Stage,
    request: Request,
    *,
    format: str,
    forms: tuple[str, ...],
    projector: tuple[Entry, ...],
    config: Mapping[str, Any],
) -> Layout:
    """The layout of a LLaVA-like checkpoint around a projector.

    Args:
        format: ``llava`` or ``vlora``.
        forms: The forms that it has.
        projector: The method's tensors under the original's full names.
        config: The keys of config.json that describe the method.
    """
    kept = kept_files(plan, format)
    form = choose_form(plan, request, kept, forms)
    documents = {"config.json": _config(plan, kept, config)}
    main = _main_part(plan, kept, form, projector, documents)
    parts = [main]
    if form == "lora":
        lora = plan.part(_LORA)
        adapter = adapter_config(lora, kept, plan) if lora is not None else {}
        parts.append(replace(lora, folder="", documents={"adapter_config.json": adapter}))  # type: ignore[type-var]
    tower = plan.part(_TOWER)
    options: dict[str, Any] = {"format": format, "form": form}
    if kept is None and tower is not None:  # a model that no checkpoint stands behind: its tower comes along
        parts.append(tower)
    elif tower is not None and tower.origin is None:
        options["settings"] = _tower_settings(tower)
    else:  # where the source had it
        options["vision"] = str(tower.origin if tower is not None else plan.encoders["image"]["source"])
    language = plan.part(_LANGUAGE)
    if form != "full":
        options["llm"] = str(language.origin) if language is not None else plan.base["source"]
    finish = _finisher(plan, stage, kept, form)
    return Layout(tuple(parts), "original", format, finish, options)


def _main_part(
    plan: Plan,
    kept: OriginalFiles | None,
    form: str,
    projector: tuple[Entry, ...],
    documents: Mapping[str, Mapping[str, Any]],
) -> Part:
    if form != "full":
        usual = f"{_ADAPTER_PREFIX}{_MODEL}" if form == "lora" else _MODEL
        prefix = str(kept.facts.get("prefix", usual)) if kept is not None and kept.form == form else usual

        def saved(name: str) -> str:
            return (prefix if name.startswith(_PROJECTOR) else usual) + name.removeprefix(_MODEL)

        entries = renamed(projector, saved)
        return Part("", "non_lora_trainables" if form == "lora" else "mm_projector", entries, documents, suffix="bin")
    language = plan.part(_LANGUAGE)
    entries = (*(language.entries if language is not None else ()), *projector, *_inside(plan, kept))
    return Part("", "model", entries, documents)


def _inside(plan: Plan, kept: OriginalFiles | None) -> tuple[Entry, ...]:
    """The tower's copy and the computed buffers, where the source had them too."""
    tower = plan.part(_TOWER)
    facts: Mapping[str, Any] = kept.facts if kept is not None else {}
    found: list[Entry] = []
    if facts.get("tower_inside") and tower is not None:
        kind = getattr(torch, facts["tower_inside"])
        found += [replace(entry, name=_INSIDE + entry.name, dtype=kind) for entry in tower.entries]
    language = plan.part(_LANGUAGE)
    for name, kind in facts.get("computed", {}).items():
        if _INV_FREQ.search(name) and language is not None:
            values = _inverse_frequencies(language.documents["config.json"])
            found.append(change(name, tuple(values.shape), getattr(torch, kind), lambda values=values: values))
        elif name.endswith("position_ids") and tower is not None:
            table = next(entry for entry in tower.entries if entry.name.endswith("position_embedding.weight"))
            count = torch.arange(table.shape[0]).unsqueeze(0)
            found.append(change(name, tuple(count.shape), count.dtype, lambda count=count: count))
    return tuple(found)


def _inverse_frequencies(config: Mapping[str, Any]) -> Tensor:
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    return 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width))


def _config(plan: Plan, kept: OriginalFiles | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """The source's own config where there is one, with what is true now."""
    language = plan.part(_LANGUAGE)
    plain = dict(language.documents["config.json"]) if language is not None else {}
    values = dict(kept.config) if kept is not None else {**plain, "use_mm_proj": True}
    values |= config
    key = "dtype" if "dtype" in values and "torch_dtype" not in values else "torch_dtype"
    values.pop("dtype", None)
    return {**values, key: str(plan.dtype).removeprefix("torch.")}


def adapter_config(lora: Part, kept: OriginalFiles | None, plan: Plan) -> dict[str, Any]:
    """PEFT's file: the source's own, or what describes the LoRA now."""
    if kept is not None and "adapter_config.json" in kept.files:
        return read_json(kept.files["adapter_config.json"])
    base = plan.base["source"] if plan.part(_LANGUAGE) is None else None
    return {**lora.documents["adapter_config.json"], "base_model_name_or_path": base}


def _tower_settings(tower: Part) -> dict[str, Any]:
    config = tower.documents["config.json"]
    names = ("num_attention_heads", "hidden_act")
    return {f"vision.{name}": config[name] for name in names if name in config}


def _finisher(plan: Plan, stage: Stage, kept: OriginalFiles | None, form: str) -> Callable[[Path], None]:
    def finish(folder: Path) -> None:
        for name, path in (kept.files if kept is not None else {}).items():
            if name in TOKENIZER_FILES or (name == "generation_config.json" and form == "full"):
                shutil.copyfile(path, folder / name)
        if form == "full" and not any((folder / name).is_file() for name in TOKENIZER_FILES[:2]):
            stage.processor.tokenizer.save_pretrained(str(folder))

    return finish
