"""Writes VLoRA checkpoints as its own code saves them: full, or the generator alone (stage 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmtune.convert.layout import Layout
from mmtune.convert.plan import Part, PlainPlan, Plan, Request, change
from mmtune.convert.staging import Stage
from mmtune.convert.to_original import arrange_original, kept_files, require_method
from mmtune.convert.vlora import BLOCK, HEADS
from mmtune.convert.writer import Entry
from mmtune.core.errors import NotPossibleError

_PREFIX = "model.mm_projector."
_FACTORS = "delta_b."
_INNER = {ours: theirs for theirs, ours in BLOCK.items()}


def arrange(plan: Plan | PlainPlan, stage: Stage | None, request: Request) -> Layout:
    """The layout of a VLoRA checkpoint.

    Raises:
        NotPossibleError: Another method, or settings that VLoRA's code fixes otherwise.
        UsageError: An unknown ``--set`` key or form.
    """
    plan, stage = require_method(plan, stage, "vlora")
    settings = stage.model.config.settings
    if settings["heads"] != HEADS:
        raise NotPossibleError(
            f"VLoRA's code has {HEADS} heads, this generator {settings['heads']}.", where="--to", fix="use --to mmtune"
        )
    if settings["normalize_features"]:
        raise _not_published("has no norm on the features (normalize_features)")
    if settings["placeholder"] != "slot":
        raise _not_published(f"keeps a position for each picture, this model '{settings['placeholder']}' (placeholder)")
    hidden = stage.model.language_model.config.get_text_config().hidden_size
    for kind, sites in stage.model.method.sites.items():
        if (sites[0].in_features, sites[0].out_features) != (hidden, hidden):
            shape = f"'{kind}' of this language model is one from {sites[0].in_features} to {sites[0].out_features}"
            raise _not_published(f"changes maps from {hidden} (the hidden size) to {hidden} alone; {shape}")
    method = plan.part("")
    projector = _generator(method, settings) if method is not None else ()
    return arrange_original(
        plan, stage, request, format="vlora", forms=("full", "projector"), projector=projector,
        config=_config(plan, stage, projector),
    )  # fmt: skip


def _not_published(what: str) -> NotPossibleError:
    return NotPossibleError(f"VLoRA's code {what}.", where="--to", fix="use --to mmtune")


def _generator(method: Part, settings: dict[str, Any]) -> tuple[Entry, ...]:
    factors = {entry.name.removeprefix(_FACTORS): entry for entry in method.entries if entry.name.startswith(_FACTORS)}
    found = [
        change(_PREFIX + original_name(entry.name, bool(settings["separate"])), entry.shape, entry.dtype, entry.read)
        for entry in method.entries
        if not entry.name.startswith(_FACTORS)
    ]
    ordered = [factors[kind] for kind in settings["types"]]
    layers, hidden, rank = ordered[0].shape

    def join() -> Tensor:
        """All types behind each other, layer by layer."""
        return torch.cat([entry.read().reshape(layers, hidden * rank) for entry in ordered]).unsqueeze(0)

    shape = (1, len(ordered) * layers, hidden * rank)
    return (*found, change(f"{_PREFIX}Bs", shape, ordered[0].dtype, join))


def original_name(name: str, separate: bool) -> str:
    """The original's name of one of our tensors, the reverse of :func:`mmtune.convert.vlora.translate`."""
    inner = name.removeprefix("generator.")
    if inner.startswith("visual_projection."):
        return f"visual_proj.{inner.removeprefix('visual_projection.')}"
    if inner == "position_embedding":
        return "pos_embed"
    words = inner.split(".")  # decoders, number, …
    prefix, rest = (f"gen.{words[1]}." if separate else "gen."), words[2:]
    if rest[0] == "blocks":
        return prefix + ".".join(("decoders", rest[1], _INNER[rest[2]], *rest[3:]))
    return prefix + ".".join(("weights_head" if rest[0] == "head" else rest[0], *rest[1:]))


def _config(plan: Plan, stage: Stage, projector: tuple[Entry, ...]) -> dict[str, Any]:
    kept = kept_files(plan, "vlora")
    settings, modality = stage.model.config.settings, stage.model.modalities["image"]
    image = modality.settings.model_dump(mode="json")
    layers, hidden, rank = _sizes(projector, settings)
    values: dict[str, Any] = {
        "mm_projector_type": "vlora",
        "mm_hidden_size": modality.width,
        "mm_vision_select_layer": image["layer"],
        "mm_vision_select_feature": image["select"],
        "image_aspect_ratio": image["aspect"],
        "vlora_visual_dim": modality.width,
        "vlora_pos_num": modality.num_positions,
        "vlora_dim": settings["dim"],
        "vlora_depth": settings["depth"],
        "vlora_rank": rank,
        "vlora_alpha": settings["alpha"],
        "vlora_type": settings["types"],
        "vlora_llm_dim": hidden,
        "vlora_llm_depth": layers * settings["every"],
        "weights_sep": settings["separate"],
        "skip_layers": settings["every"],
    }
    if kept is not None:
        return {key: value for key, value in values.items() if key in kept.config}
    kind = str(stage.model.language_model.config.model_type)
    if kind != "llama":
        raise NotPossibleError(
            f"VLoRA's code has no class for a '{kind}' language model.", where="--to", fix="use --to mmtune"
        )
    names = {"model_type": "llava_vlora", "architectures": ["LlavaVLoRAForCausalLM"]}
    return {**values, **names, "mm_vision_tower": str(plan.encoders["image"]["source"])}


def _sizes(projector: tuple[Entry, ...], settings: dict[str, Any]) -> tuple[int, int, int]:
    """Active layers, hidden size and rank, by the shape of the factors."""
    factors = next(entry for entry in projector if entry.name == f"{_PREFIX}Bs")
    rank = int(settings["rank"])
    return factors.shape[1] // len(settings["types"]), factors.shape[2] // rank, rank
