"""Writes LLaVA checkpoints as its own code saves them: full, LoRA, or the projector alone."""

from __future__ import annotations

from typing import Any

from mmtune.convert.layout import Layout, renamed
from mmtune.convert.original import FRAME, START_END
from mmtune.convert.plan import PlainPlan, Plan, Request
from mmtune.convert.staging import Stage
from mmtune.convert.to_original import arrange_original, kept_files, require_method
from mmtune.core.errors import NotPossibleError
from mmtune.modalities.image import ImageModality

_FORMS = ("full", "lora", "projector")
_LAYERS, _NEWLINE = "projector.image.layers.", "line_break.image"
_DECODERS = {"llama": "llava_llama", "mistral": "llava_mistral"}
_CLASSES = {"llava_llama": "LlavaLlamaForCausalLM", "llava_mistral": "LlavaMistralForCausalLM"}


def arrange(plan: Plan | PlainPlan, stage: Stage | None, request: Request) -> Layout:
    """The layout of a LLaVA checkpoint.

    Raises:
        NotPossibleError: Another method, or encoders, decoders and forms that LLaVA's code does not know.
        UsageError: An unknown ``--set`` key or form.
    """
    plan, stage = require_method(plan, stage, "llava")
    kind = str(plan.settings.get("projector", "mlp2x_gelu"))

    def original_name(name: str) -> str:
        if name == _NEWLINE:
            return "model.image_newline"
        inner = name.removeprefix(_LAYERS)
        return f"model.mm_projector.{inner.removeprefix('0.') if kind == 'linear' else inner}"

    method = plan.part("")
    projector = renamed(method.entries if method is not None else (), original_name)
    return arrange_original(
        plan, stage, request, format="llava", forms=_FORMS, projector=projector, config=_config(plan, stage, kind)
    )


def _config(plan: Plan, stage: Stage, kind: str) -> dict[str, Any]:
    modality = stage.model.modalities.get("image")
    if modality is None or len(stage.model.modalities) > 1:
        names = ", ".join(stage.model.modalities)
        raise NotPossibleError(f"LLaVA takes pictures alone, this model: {names}.", where="--to", fix="use --to mmtune")
    if isinstance(modality, ImageModality):
        _require_clip(str(modality.encoder_config.model_type))
    settings = modality.settings.model_dump(mode="json")
    framed = _is_framed(stage)
    kept = kept_files(plan, "llava")
    values: dict[str, Any] = {
        "mm_projector_type": kind,
        "mm_hidden_size": modality.width,
        "mm_vision_select_layer": settings["layer"],
        "mm_vision_select_feature": settings["select"],
        "image_aspect_ratio": settings["aspect"],
        START_END: framed,
    }
    if settings["aspect"] == "anyres":
        values |= {"image_grid_pinpoints": settings["pinpoints"], "mm_patch_merge_type": settings["merge"]}
    if kept is not None:
        return {key: value for key, value in values.items() if key in kept.config}
    decoder = str(stage.model.language_model.config.model_type)
    if decoder not in _DECODERS:
        raise NotPossibleError(
            f"LLaVA's code has no class for a '{decoder}' language model.", where="--to", fix="use --to mmtune"
        )
    name = _DECODERS[decoder]
    source = str(plan.encoders["image"]["source"])
    return {**values, "model_type": name, "architectures": [_CLASSES[name]], "mm_vision_tower": source,
            "mm_use_im_patch_token": False}  # fmt: skip


def _require_clip(kind: str) -> None:
    if not kind.startswith("clip"):
        raise NotPossibleError(f"LLaVA's code reads CLIP towers only, no '{kind}'.", where="--to", fix="use --to hf")


def _is_framed(stage: Stage) -> bool:
    """Whether prompts have LLaVA's start and end tokens around pictures.

    Raises:
        NotPossibleError: Other texts, or tokens that the tokenizer does not have.
    """
    frame = stage.processor.frame
    if frame is None:
        return False
    texts = (frame.before, frame.after)
    if texts != FRAME or not set(FRAME) <= stage.processor.tokenizer.get_vocab().keys():
        raise NotPossibleError(
            f"LLaVA's code has the tokens {' and '.join(FRAME)} around pictures, this model the texts {texts}.",
            where="--to",
            fix="use --to mmtune",
        )
    return True
