"""Reads what transformers and PEFT write: native LLaVA and LLaVA-NeXT, language models, LoRA folders and towers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmtune.convert.bases import open_language
from mmtune.convert.damage import read_json
from mmtune.convert.hf_llava import NATIVE, read_native
from mmtune.convert.language import Language, dtype_name, read_language
from mmtune.convert.locate import Place, locate
from mmtune.convert.lora import Lora, merged_part, read_lora
from mmtune.convert.plan import Part, PlainPlan, Plan, Request, keep
from mmtune.convert.reference_hf import LanguageReference, TowerReference
from mmtune.convert.tensors import StoredTensor, not_understood, open_folder, require_shape
from mmtune.convert.tokenizer_files import find_tokenizer
from mmtune.convert.vision import default_preparation, vision_model
from mmtune.core.errors import CheckpointError, NotPossibleError

_TOWERS = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")
_POSITIONS = "embeddings.position_ids"  # a buffer that old versions saved


def read(folder: Path, form: str, request: Request, *, merge: bool, dtype: torch.dtype | None) -> Plan | PlainPlan:
    """Plan the conversion of a folder in the layouts of transformers or PEFT.

    Raises:
        CheckpointError: Something is missing, unknown, damaged or does not fit.
        NotPossibleError: A model of a kind that is not read, or nothing to merge.
        UsageError: An unknown ``--set`` key.
    """
    if form == "lora":
        return _read_lora(folder, request, merge=merge, dtype=dtype)
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind in NATIVE:
        return read_native(folder, request, merge=merge, dtype=dtype)
    if merge:
        raise NotPossibleError("There is no LoRA to merge in this folder.", where=str(folder), fix="use --to hf")
    if kind in _TOWERS:
        return _read_tower(folder, config, dtype)
    if "vision_config" in config or "audio_config" in config:
        raise NotPossibleError(
            f"A multimodal '{kind}' is not read by this version.",
            where=str(folder / "config.json"),
            allowed=sorted(NATIVE),
            fix=f"known: {', '.join(sorted(NATIVE))}, plain language models, CLIP and SigLIP towers",
        )
    language = read_language(folder)
    return _language_plan(language, None, request, dtype, (folder,))


def _language_plan(
    language: Language, lora: Lora | None, request: Request, dtype: torch.dtype | None, sources: tuple[Path, ...]
) -> PlainPlan:
    part = language.part(dtype) if lora is None else merged_part(language, lora, dtype)
    others = f"{len(language.left)} tensors beside the language model are left out; without --from hf they come along."
    return PlainPlan(
        format="hf",
        form="language",
        part=replace(part, folder=""),
        tokenizer=language.tokenizer or find_tokenizer(language.folder),
        dtype=dtype or language.dtype,
        sources=sources,
        reference=LanguageReference(language, lora, dtype, merge=lora is not None),
        notes=(others,) if language.left else (),
    )


def _read_lora(folder: Path, request: Request, *, merge: bool, dtype: torch.dtype | None) -> PlainPlan:
    """A PEFT folder on its base: folded into it, or alone."""
    named = request.llm or read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not named:
        raise CheckpointError("adapter_config.json names no base.", where=str(folder), fix="give its base with --llm")
    beside = folder if request.llm is None else None
    place: Place = locate(str(named), beside=beside, what="base language model", option="--llm")
    language = open_language(place.folder)
    lora = read_lora(folder, language)
    if merge:
        return _language_plan(language, lora, request, dtype, (folder, place.folder))
    return PlainPlan(
        format="hf",
        form="lora",
        part=replace(lora.part(dtype), folder=""),
        tokenizer=None,
        dtype=dtype or language.dtype,
        sources=(folder, place.folder),
        reference=LanguageReference(language, lora, dtype, merge=False),
        base=place.folder,
    )


def _read_tower(folder: Path, config: dict[str, Any], dtype: torch.dtype | None) -> PlainPlan:
    """The vision half of a CLIP or SigLIP folder."""
    kind = str(config["model_type"])
    whole = not kind.endswith("_vision_model")
    values = dict(config.get("vision_config") or {}) if whole else dict(config)
    values = {key: value for key, value in values.items() if key not in ("torch_dtype", "_name_or_path", "dtype")}
    values["model_type"] = f"{kind}_vision_model" if whole else kind
    where = str(folder / "config.json")
    expected = {
        f"vision_model.{name}": tensor for name, tensor in vision_model(values, where=where).state_dict().items()
    }
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in open_folder(folder).items():
        inner = name if name.startswith("vision_model.") else f"vision_model.{name}"
        if inner in expected:
            tensors[inner] = tensor
        elif not whole and not inner.endswith(_POSITIONS):
            raise not_understood([name], {name: tensor}, form=f"{kind} folder")
    if missing := expected.keys() - tensors.keys():
        raise CheckpointError(f"Tensor '{min(missing)}' is missing.", where=str(folder), fix="copy the whole folder")
    for name, tensor in tensors.items():
        require_shape(tensor, tuple(expected[name].shape), because="config.json")
    stored = next(iter(tensors.values())).dtype
    path = folder / "preprocessor_config.json"
    preparation = read_json(path) if path.is_file() else default_preparation(int(values["image_size"]))
    name = "CLIPVisionModel" if kind.split("_")[0] == "clip" else "SiglipVisionModel"
    written = {**values, "architectures": [name], "dtype": dtype_name(dtype or stored)}
    entries = tuple(keep(tensor, name, dtype) for name, tensor in tensors.items())
    documents = {"config.json": written, "preprocessor_config.json": preparation}
    return PlainPlan(
        format="hf",
        form="vision",
        part=Part("", "model", entries, documents, origin=folder),
        tokenizer=None,
        dtype=dtype or stored,
        sources=(folder,),
        reference=TowerReference(values, tensors, dtype, where),
    )
