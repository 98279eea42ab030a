"""Reads multi_token checkpoints: LoRA and projectors over any base, first-stage ones, and those of full training."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmtune.convert.bases import open_language
from mmtune.convert.damage import read_json, reading
from mmtune.convert.encoders import PUBLISHED, Encoder, read_encoder
from mmtune.convert.language import Language, check_language
from mmtune.convert.locate import Place
from mmtune.convert.lora import Lora, merged_part, read_lora
from mmtune.convert.plan import OriginalFiles, Part, Plan, Request
from mmtune.convert.projectors import LORA_PREFIX, OriginalProjector, read_projector, split_projectors
from mmtune.convert.reference_multi_token import MultiTokenReference
from mmtune.convert.surroundings import check_base, find_base
from mmtune.convert.tensors import Store, has_weights, not_understood, open_folder
from mmtune.convert.tokenizer_files import find_tokenizer, stage_tokenizer
from mmtune.core.errors import CheckpointError, NotPossibleError, UsageError
from mmtune.model.chat import ChatTemplate
from mmtune.model.instruction import has_instructions
from mmtune.model.templates import CHAT, INSTRUCTION
from mmtune.model.tokenization import load_tokenizer

_TRAINED = "non_lora_trainables"
_PAD = "vision_clip.pad_to_square"
_SETTINGS = (_PAD, "form")  # the last is for the writer


@dataclass(frozen=True, slots=True)
class Source:
    """An opened checkpoint.

    Args:
        form: ``lora``, ``projector`` or ``full``.
        base: Where the language model was found; None when the checkpoint holds it.
    """

    folder: Path
    form: str
    config: Mapping[str, Any]
    language: Language
    base: Place | None
    lora: Lora | None
    encoders: tuple[Encoder, ...]
    projectors: tuple[OriginalProjector, ...]
    tokenizer: Path
    pads: bool

    def image_settings(self, projector: OriginalProjector) -> dict[str, Any]:
        """How pictures are read, which only the projector's kind tells."""
        aspect = {"aspect": "pad" if self.pads else "square"}
        return (
            {"select": "pool", **aspect} if projector.kind == "vector" else {"layer": -2, "select": "patch", **aspect}
        )


def read(folder: Path, form: str, request: Request, *, merge: bool, dtype: torch.dtype | None) -> Plan:
    """Plan the conversion of a multi_token checkpoint.

    Args:
        form: Told by the files themselves; not used.
        merge: Fold the LoRA into the language model.
        dtype: Precision to write; as stored when None.

    Raises:
        CheckpointError: Something is missing, unknown, damaged or does not fit.
        NotPossibleError: A modality or decoder that this version does not read, or nothing to merge.
        UsageError: An unknown ``--set`` key or ``--encoder`` name.
    """
    source = _open(folder, request)
    if merge and source.lora is None:
        raise NotPossibleError(
            "There is no LoRA to merge in this checkpoint.", where=str(folder), fix="use --to mmtune"
        )
    settings = {encoder.key: _modality_settings(source, at) for at, encoder in enumerate(source.encoders)}
    places = {encoder.key: encoder.place.folder for encoder in source.encoders if encoder.place is not None}
    used = [folder, source.language.folder, *places.values(), source.tokenizer]
    return Plan(
        format="multi-token",
        form=source.form,
        method="multi_token",
        parts=_parts(source, merge, dtype),
        base=_base_entry(source, merge),
        encoders={encoder.key: {**encoder.source, "settings": settings[encoder.key]} for encoder in source.encoders},
        origins={encoder.key: places.get(encoder.key, folder) for encoder in source.encoders},
        settings={"projectors": {e.key: p.settings for e, p in zip(source.encoders, source.projectors, strict=True)}},
        tokenizer=source.tokenizer,
        legacy_tokenizer=False,
        template=_template(source.tokenizer),
        dtype=dtype or source.language.dtype,
        max_length=None,
        notes=_notes(source),
        sources=tuple(dict.fromkeys(used)),
        reference=MultiTokenReference(source, settings, dtype, merge=merge),
        original=_original_files(source),
    )


def _open(folder: Path, request: Request) -> Source:
    config = read_json(folder / "config.json")
    names = _modalities(config, folder)
    _check_request(request, names)
    projectors, others = split_projectors(open_folder(folder, (_TRAINED,)))
    _same_modalities(names, projectors, folder)
    if others:
        language, base = _own_language(folder, config, others), None
    else:
        base = find_base(folder, config, request)
        language = open_language(base.folder)
        check_base(config, language, folder)
    has_lora = has_weights(folder, ("adapter_model",)) and not others
    if not (has_lora or others) and (folder / "adapter_config.json").is_file():  # some published uploads are like this
        raise CheckpointError(
            "There is an adapter_config.json, but the LoRA's weights are missing: adapter_model.safetensors or .bin.",
            where=str(folder),
            fix="get the file; to convert the projector alone, take adapter_config.json out of the folder",
        )
    lora = read_lora(folder, language) if has_lora else None
    pads = bool(request.settings.get(_PAD, False))
    encoders = tuple(read_encoder(name, {}, folder, request) for name in names)
    where = folder / f"{_TRAINED}.bin"
    made = tuple(
        read_projector(e.name, projectors[e.name], width=e.width, hidden=language.hidden_size, where=where)
        for e in encoders
    )
    form = "full" if others else "lora" if has_lora else "projector"
    tokenizer = _tokenizer(folder, config, language, request)
    return Source(folder, form, config, language, base, lora, encoders, made, tokenizer, pads)


def _modalities(config: Mapping[str, Any], folder: Path) -> list[str]:
    names, where = config.get("modalities"), str(folder / "config.json")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"config.json has modalities {names!r}, no list of names.", where=where, fix="copy config.json again"
        )
    unknown = next((name for name in names if name not in PUBLISHED), None)
    if unknown is not None:
        raise NotPossibleError(
            f"The modality '{unknown}' is none of the published code's.", where=where, allowed=PUBLISHED,
            fix=f"known: {', '.join(PUBLISHED)}",
        )  # fmt: skip
    if len(set(names)) < len(names):
        raise CheckpointError("config.json names a modality twice.", where=where, fix="copy config.json again")
    return names


def _check_request(request: Request, names: list[str]) -> None:
    for key in request.settings:
        if key not in _SETTINGS:
            raise UsageError(
                f"Unknown setting '{key}' for this format.", where="--set", allowed=_SETTINGS, fix=f"use {_PAD}=true"
            )
    if not isinstance(request.settings.get(_PAD, False), bool):
        raise UsageError(f"{_PAD} is {request.settings[_PAD]!r}.", where="--set", fix=f"write {_PAD}=true")
    for name in request.encoders:
        if name not in names:
            raise UsageError(
                f"This checkpoint has no encoder '{name}'.", where="--encoder", allowed=names,
                fix=f"use one of: {', '.join(names)}",
            )  # fmt: skip


def _same_modalities(names: list[str], projectors: Mapping[str, Store], folder: Path) -> None:
    surplus = [tensors for name, tensors in projectors.items() if name not in names]
    if surplus:
        raise not_understood([t.name for t in surplus[0].values()], _by_name(surplus[0]), form="multi_token checkpoint")
    for name in names:
        if name not in projectors:
            raise CheckpointError(
                f"config.json lists the modality '{name}', but its projector's tensors are missing.",
                where=str(folder / f"{_TRAINED}.bin"),
                fix="use the config.json and the weights of one and the same checkpoint",
            )


def _by_name(store: Store) -> Store:
    return {tensor.name: tensor for tensor in store.values()}


def _own_language(folder: Path, config: Mapping[str, Any], tensors: Store) -> Language:
    """The language model that a full training leaves among the trained weights."""
    kind = str(config.get("model_type")).removesuffix("-lmm")
    own = ("modalities", "modality_builder", "model_cls", "torch_dtype", "_name_or_path", "architectures")
    plain = {key: value for key, value in config.items() if key not in own} | {"model_type": kind}
    check_language(tensors, plain, folder)
    return Language(folder, plain, tensors, {})


def _tokenizer(folder: Path, config: Mapping[str, Any], language: Language, request: Request) -> Path:
    """The base's tokenizer: that of the training, though its final folder never holds it."""
    found = find_tokenizer(language.tokenizer or language.folder)
    if found is None:
        found = find_tokenizer(find_base(folder, config, request).folder)
    if found is None:
        raise CheckpointError(
            "No tokenizer: neither the base nor the checkpoint has tokenizer.model or tokenizer.json.",
            where=str(language.folder),
            fix="give the base with --llm, with its tokenizer files",
        )
    return found


def _modality_settings(source: Source, index: int) -> dict[str, Any]:
    encoder = source.encoders[index]
    return source.image_settings(source.projectors[index]) if encoder.tower is not None else {}


def _base_entry(source: Source, merge: bool) -> Mapping[str, Any]:
    if source.base is not None and source.base.hub_id is not None and not merge:
        return {"source": source.base.hub_id, "revision": source.base.revision, "probe": None}
    return {"source": "language_model", "revision": None, "probe": None}


def _parts(source: Source, merge: bool, dtype: torch.dtype | None) -> tuple[Part, ...]:
    entries = [
        entry
        for encoder, projector in zip(source.encoders, source.projectors, strict=True)
        for entry in projector.entries(f"projector.{encoder.key}.", dtype)
    ]
    parts: list[Part | None] = [
        Part("", "adapter", tuple(sorted(entries, key=lambda entry: entry.name)), sharded=False, origin=source.folder)
    ]
    if source.lora is not None and merge:
        parts.append(merged_part(source.language, source.lora, dtype))
    else:
        copied = _base_entry(source, merge)["source"] == "language_model"
        parts.append(source.language.part(dtype) if copied else None)
        parts.append(source.lora.part(dtype) if source.lora is not None else None)
    parts += [encoder.part(dtype) for encoder in source.encoders]
    return tuple(part for part in parts if part is not None)


def _original_files(source: Source) -> OriginalFiles:
    """What is kept, so that the same checkpoint can be written again."""
    path = source.folder / "adapter_config.json"
    files = {path.name: path} if path.is_file() and source.lora is not None else {}
    pickled = source.lora is not None and next(iter(source.lora.tensors.values())).file.suffix == ".bin"
    prefixes = {tensor.name.startswith(LORA_PREFIX) for each in source.projectors for tensor in each.tensors.values()}
    facts = {"adapter_suffix": "bin" if pickled else "safetensors", "lora_prefix": prefixes == {True}}
    return OriginalFiles("multi-token", source.form, source.config, files, facts)


def _template(tokenizer: Path) -> str:
    """The base's chat template; in the published pieces where it is an ``[INST]`` one."""
    with tempfile.TemporaryDirectory() as name, reading(tokenizer, "The tokenizer's files"):
        stage_tokenizer(tokenizer, Path(name))
        loaded = load_tokenizer(name)
    if not loaded.chat_template:
        raise CheckpointError(
            "The base's tokenizer has no chat template, by which the checkpoint's prompts are made.",
            where=str(tokenizer),
            fix="add the chat_template to its tokenizer_config.json",
        )
    return INSTRUCTION if has_instructions(ChatTemplate(loaded)) else CHAT


def _notes(source: Source) -> tuple[str, ...]:
    found = []
    if source.lora is not None and not any(bool(b.read().any()) for _, b in source.lora.pairs.values()):
        found.append("The LoRA is untrained, as after the first stage; it is kept, to go on from.")
    if source.base is None and len(source.projectors):
        found.append("The language model was trained as a whole; it is taken from the checkpoint.")
    return tuple(found)
