"""Reads ``LlavaForConditionalGeneration`` and LLaVA-NeXT folders of any version of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from mmtune.convert.damage import read_json, reading
from mmtune.convert.language import Language, check_language
from mmtune.convert.llava import plan_llava
from mmtune.convert.original import FRAME, START_END, Original
from mmtune.convert.plan import Plan, Request
from mmtune.convert.reference import num_parameters
from mmtune.convert.reference_hf import NativeReference
from mmtune.convert.tensors import Store, StoredTensor, derived, not_understood, open_folder
from mmtune.convert.tokenizer_files import find_tokenizer
from mmtune.convert.vision import Tower, checked_tower
from mmtune.core.errors import CheckpointError, NotPossibleError

NATIVE = ("llava", "llava_next")
# Layouts of old hub files, of save_pretrained, and of the model in memory.
_LANGUAGE = re.compile(r"^(?:language_model\.(model\..+|lm_head\..+)|model\.language_model\.(.+)|(lm_head\..+))$")
_TOWER = re.compile(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)$")
_PROJECTOR = re.compile(r"^(?:model\.)?multi_modal_projector\.linear_([12])\.(weight|bias)$")
_NEWLINE = re.compile(r"^(?:model\.)?image_newline$")
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")
# Which positions of a tower: ``default`` leaves out the first one, SigLIP has no class token there.
_SELECT = {
    "clip_vision_model": {"default": "patch", "full": "cls_patch"},
    "siglip_vision_model": {"full": "patch"},
}
_PLAIN_ACTIVATIONS = ("linear", "identity")
_OWN_KEYS = ("do_pad", "image_grid_pinpoints", "processor_class", "image_processor_type", "_valid_kwargs_names")
_FRAMED = "<image>".join(FRAME)
# What a chat template says of the conversation format.
_SIGNS = (("[INST]", "mistral_instruct"), ("<|im_start|>", "chatml_direct"))


def read_native(folder: Path, request: Request, *, merge: bool, dtype: torch.dtype | None) -> Plan:
    """Plan the conversion of a native LLaVA folder.

    Raises:
        CheckpointError: Something is missing, unknown, damaged or does not fit.
        NotPossibleError: A variant that this version does not read, or nothing to merge.
        UsageError: Any ``--set`` key; the folder says everything.
    """
    request.check_settings()
    with reading(folder / "config.json", "config.json"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    stated = read_json(folder / "config.json")
    store = open_folder(folder)
    parts = _take_apart(store, folder)
    language = _language(folder, config, parts["language"])
    projector = _projector(stated, parts["projector"], folder)
    tower, preparation = _tower(folder, config, parts["tower"])
    settings = _settings(config, stated, preparation, projector, folder)
    tokenizer = find_tokenizer(folder)
    if tokenizer is None:
        raise CheckpointError("No tokenizer in this folder.", where=str(folder), fix="copy the tokenizer's files too")
    newline = parts["newline"].get("image_newline")
    texts = _chat_templates(folder)
    if any(_FRAMED in text for text in texts):
        settings |= {START_END: True, "mm_use_im_patch_token": False}
    found = (language, None, tower, projector, newline, tokenizer, {})
    original = Original(folder, "full", settings, *found, template=_template(texts))
    return plan_llava(
        original,
        merge=merge,
        dtype=dtype,
        format="hf",
        reference=NativeReference(folder, num_parameters(store), dtype),
    )


def _take_apart(store: Store, folder: Path) -> dict[str, dict[str, StoredTensor]]:
    parts: dict[str, dict[str, StoredTensor]] = {"language": {}, "tower": {}, "projector": {}, "newline": {}}
    for name, tensor in store.items():
        if _COMPUTED.search(name):
            continue
        if match := _LANGUAGE.match(name):
            inner = match.group(1) or match.group(3) or f"model.{match.group(2)}"
            kind = "language"
        elif match := _TOWER.match(name):
            kind, inner = "tower", match.group(1)
        elif match := _PROJECTOR.match(name):
            kind, inner = "projector", f"{2 * int(match.group(1)) - 2}.{match.group(2)}"
        elif _NEWLINE.match(name):
            kind, inner = "newline", "image_newline"
        else:
            raise not_understood([name], store, form="LLaVA folder of transformers")
        parts[kind][inner] = derived(tensor, tensor.shape, tensor.read, inner)
    return parts


def _language(folder: Path, config: Any, tensors: Store) -> Language:
    values = {
        key: value
        for key, value in config.text_config.to_dict().items()
        if value is not None and key not in ("dtype", "_name_or_path", "transformers_version")
    }
    if "lm_head.weight" not in tensors:
        values["tie_word_embeddings"] = True
    made = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    if values.get("model_type") in made:
        values["architectures"] = [made[str(values["model_type"])]]
    check_language(tensors, values, folder)
    return Language(folder, values, tensors, {})


def _tower(folder: Path, config: Any, tensors: Store) -> tuple[Tower, dict[str, Any]]:
    vision = {key: value for key, value in config.vision_config.to_dict().items() if value is not None}
    if vision.get("model_type") not in _SELECT:
        raise NotPossibleError(
            f"A LLaVA with a '{vision.get('model_type')}' tower is not read by this version.",
            where=str(folder / "config.json"),
            fix="use one with a CLIP or SigLIP tower",
        )
    vision = {key: value for key, value in vision.items() if key not in ("dtype", "_name_or_path")}
    preparation = _preparation(folder)
    kept = {key: value for key, value in preparation.items() if key not in _OWN_KEYS}
    siglip = str(preparation.get("image_processor_type")).startswith("Siglip")
    prepared = {**kept, "image_processor_type": f"{'Siglip' if siglip else 'CLIP'}ImageProcessor"} if kept else None
    return checked_tower(Tower(vision, prepared, tensors, None, inside=False), str(folder)), preparation


def _preparation(folder: Path) -> dict[str, Any]:
    """The picture preparation, from where newer or older versions keep it."""
    whole = folder / "processor_config.json"
    inner = read_json(whole).get("image_processor") if whole.is_file() else None
    if isinstance(inner, dict):
        return inner
    path = folder / "preprocessor_config.json"
    return read_json(path) if path.is_file() else {}


def _projector(stated: Mapping[str, Any], tensors: Store, folder: Path) -> dict[str, StoredTensor]:
    """By the names of LLaVA's own projector; an identity behind a single map is left out."""
    activation = stated.get("projector_hidden_act", "gelu")
    if stated.get("multimodal_projector_bias", True) is False:
        raise NotPossibleError("A projector without biases is not read by this version.", where=str(folder))
    if activation == "gelu":
        return dict(tensors)
    second = tensors.get("2.weight")
    if activation not in _PLAIN_ACTIVATIONS or second is None or "2.bias" not in tensors:
        raise NotPossibleError(
            f"A projector with activation '{activation}' is not read by this version.",
            where=str(folder / "config.json"),
            fix="use one with gelu",
        )
    values = second.read()
    if not torch.equal(values, torch.eye(len(values), dtype=values.dtype)) or bool(tensors["2.bias"].read().any()):
        raise NotPossibleError("Two linear maps without an activation are not read by this version.", where=str(folder))
    return {name.removeprefix("0."): tensor for name, tensor in tensors.items() if name.startswith("0.")}


def _settings(
    config: Any, stated: Mapping[str, Any], preparation: Mapping[str, Any], projector: Store, folder: Path
) -> dict[str, Any]:
    """The same facts as LLaVA's own config.json states them."""
    where = str(folder / "config.json")
    tiles = config.model_type == "llava_next"
    strategy = config.vision_feature_select_strategy
    select = _SELECT[config.vision_config.model_type]
    if strategy not in select or not isinstance(config.vision_feature_layer, int):
        raise NotPossibleError(
            f"Features of layers {config.vision_feature_layer!r} selected as '{strategy}' are not read.",
            where=where,
            fix=f"use a model with one layer, selected as {' or '.join(select)}",
        )
    values: dict[str, Any] = {
        "mm_projector_type": "linear" if "weight" in projector else "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": select[strategy],
        "image_aspect_ratio": "anyres" if tiles else "pad" if preparation.get("do_pad") else "square",
    }
    if tiles:
        pinpoints = preparation.get("image_grid_pinpoints") or config.image_grid_pinpoints
        values["image_grid_pinpoints"] = [[width, height] for height, width in pinpoints]
        values["mm_patch_merge_type"] = "spatial_unpad"
    return values


def _chat_templates(folder: Path) -> list[str]:
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("chat_template.*"))]
    config = folder / "tokenizer_config.json"
    if config.is_file():
        texts.append(str(read_json(config).get("chat_template") or ""))
    return texts


def _template(texts: Sequence[str]) -> str:
    """The conversation format that the folder's chat template describes; ``vicuna_v1`` is LLaVA's own."""
    return next((name for sign, name in _SIGNS for text in texts if sign in text), "vicuna_v1")
