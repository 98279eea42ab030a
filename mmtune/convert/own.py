"""Reads mmtune folders, trained or converted, so that they can be merged and written in other formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.convert.bases import open_language
from mmtune.convert.damage import read_json
from mmtune.convert.language import Language, dtype_name
from mmtune.convert.locate import Place, from_hub, locate
from mmtune.convert.lora import Lora, merged_part, read_lora
from mmtune.convert.plan import IMAGE, OriginalFiles, Part, Picture, Plan, Request, keep
from mmtune.convert.tensors import num_elements, open_folder
from mmtune.convert.to_mmtune import FACTS, ORIGINAL
from mmtune.core.errors import CheckpointError, NotPossibleError
from mmtune.model.build import load
from mmtune.model.checkpoint import read_config
from mmtune.model.configuration import MMTuneConfig
from mmtune.model.lora import LORA_FOLDER
from mmtune.model.sources import resolve_source

_LANGUAGE = "language_model"
_ENCODER_LORA = "encoder_lora"


def read(folder: Path, form: str, request: Request, *, merge: bool, dtype: torch.dtype | None) -> Plan:
    """Plan the conversion of an mmtune folder.

    Raises:
        CheckpointError: Something is missing, damaged or does not fit.
        NotPossibleError: Nothing to merge, or a LoRA that cannot be.
        ResourceError: A base or encoder is on the hub only, its weights are needed, and the hub is out of reach.
    """
    config = read_config(folder)
    _refuse_encoder_lora(folder)
    has_lora = (folder / LORA_FOLDER).is_dir()
    if merge and not has_lora:
        raise _nothing_to_merge(config, folder)
    base = _base(folder, config, request)
    language = open_language(base.folder) if base.hub_id is None or merge else None
    lora = read_lora(folder / LORA_FOLDER, language) if has_lora and language is not None else None
    encoders, parts, origins = {}, [_method_part(folder, dtype)], {}
    for name, entry in config.encoders.items():
        encoders[name], part, origins[name] = _encoder(folder, name, entry, request, dtype)
        parts += [part] if part is not None else []
    parts += _language_parts(folder, language, lora, merge, dtype)
    stored = language.dtype if language is not None else getattr(torch, str(config.dtype).removeprefix("torch."))
    return Plan(
        format="mmtune",
        form="lora" if has_lora else "full",
        method=config.method,
        parts=tuple(parts),
        base=_base_entry(base, config),
        encoders=encoders,
        origins=origins,
        settings=config.settings,
        tokenizer=folder,
        legacy_tokenizer=False,
        template=config.template,
        dtype=dtype or stored,
        max_length=None,
        notes=(),
        sources=tuple(dict.fromkeys((folder, base.folder, *origins.values()))),
        reference=OwnReference(folder, parts, dtype, lora if merge else None, stored),
        original=_original(folder),
    )


def _refuse_encoder_lora(folder: Path) -> None:
    """LoRA on encoders has no form in any other format yet, and must not be lost on the way."""
    if (folder / _ENCODER_LORA).is_dir():
        raise NotPossibleError(
            "The folder holds LoRA on an encoder, which is not converted by this version.",
            where=str(folder / _ENCODER_LORA),
            fix="use the folder as it is, with --model",
        )


def _nothing_to_merge(config: MMTuneConfig, folder: Path) -> NotPossibleError:
    if config.method in ("vlora", "lavin"):
        return NotPossibleError(
            f"What '{config.method}' adds to the language model depends on the input: there is no single set of "
            "weights to merge it into.",
            where="--to",
            fix="use --to mmtune",
        )
    return NotPossibleError("There is no LoRA to merge in this folder.", where=str(folder), fix="use --to mmtune")


def _base(folder: Path, config: MMTuneConfig, request: Request) -> Place:
    if request.llm is not None:
        return locate(request.llm, what="base language model", option="--llm")
    source = resolve_source(config.base["source"], "llm", folder)
    if Path(source).is_dir():
        return Place(Path(source))
    found = from_hub(source)
    return Place(found.folder) if request.whole else found


def _base_entry(base: Place, config: MMTuneConfig) -> dict[str, Any]:
    if base.hub_id is not None:
        return {**config.base, "source": base.hub_id, "revision": base.revision}
    return {"source": _LANGUAGE, "revision": None, "probe": None}


def _method_part(folder: Path, dtype: torch.dtype | None) -> Part:
    store = open_folder(folder, ("adapter",))
    entries = tuple(keep(store[name], name, dtype) for name in sorted(store))
    return Part("", "adapter", entries, sharded=False, origin=folder)


def _encoder(
    folder: Path, name: str, entry: Mapping[str, Any], request: Request, dtype: torch.dtype | None
) -> tuple[dict[str, Any], Part | None, Path]:
    """An encoder as the written config names it, its weights where they come along, and where it was found."""
    given = request.encoders.get(name) or (request.vision if name == "image" else None)
    if not (given or entry["source"]):
        return dict(entry), None, folder
    source = given or resolve_source(entry["source"], "vision", folder)
    if not Path(source).is_dir():
        found = from_hub(source)
        if not request.whole:
            return {**entry, "source": source}, None, found.folder
        source = str(found.folder)
    place, target = Path(source), f"encoders/{name}"
    entries = tuple(keep(tensor, None, dtype) for tensor in open_folder(place).values())
    documents = {path.name: read_json(path) for path in sorted(place.glob("*.json")) if "index" not in path.suffixes[0]}
    if dtype is not None and "config.json" in documents:
        documents["config.json"] = {**documents["config.json"], "dtype": dtype_name(dtype)}
    part = Part(target, "model", entries, documents, origin=place)
    return {**entry, "source": target, "revision": None}, part, place


def _language_parts(
    folder: Path, language: Language | None, lora: Lora | None, merge: bool, dtype: torch.dtype | None
) -> list[Part]:
    if language is None:
        return [_kept_lora(folder, dtype)] if (folder / LORA_FOLDER).is_dir() else []
    if lora is None:
        return [language.part(dtype)]
    return [merged_part(language, lora, dtype)] if merge else [language.part(dtype), lora.part(dtype)]


def _kept_lora(folder: Path, dtype: torch.dtype | None) -> Part:
    place = folder / LORA_FOLDER
    store = open_folder(place, ("adapter_model",))
    documents = {"adapter_config.json": read_json(place / "adapter_config.json")}
    entries = tuple(keep(store[name], name, dtype) for name in sorted(store))
    return Part(LORA_FOLDER, "adapter_model", entries, documents, sharded=False, origin=place)


def _original(folder: Path) -> OriginalFiles | None:
    """What a converted folder kept of its source."""
    place = folder / ORIGINAL
    if not (place / FACTS).is_file():
        return None
    facts = read_json(place / FACTS)
    try:
        format, form = str(facts.pop("format")), str(facts.pop("form"))
        kinds = [facts.get("tower_inside"), *facts.get("computed", {}).values()]
        wrong = [kind for kind in kinds if kind is not None and not isinstance(getattr(torch, kind), torch.dtype)]
    except (KeyError, AttributeError, TypeError) as error:
        message = f"{FACTS} is damaged or of an earlier version: {error}."
        raise CheckpointError(message, where=str(place), fix="convert the source again") from error
    if wrong:
        message = f"{FACTS} names {wrong[0]!r}, which is no data type."
        raise CheckpointError(message, where=str(place), fix="convert the source again")
    files = {path.name: path for path in sorted(place.iterdir()) if path.name not in ("config.json", FACTS)}
    return OriginalFiles(format, form, read_json(place / "config.json"), files, facts)


class OwnReference:
    """The folder as ``mmtune.load`` reads it; what is compared with it is another system's layout."""

    def __init__(
        self, folder: Path, parts: list[Part], dtype: torch.dtype | None, merged: Lora | None, stored: torch.dtype
    ) -> None:
        self.folder, self.dtype, self.merged, self.stored = folder, dtype, merged, stored
        self.num_parameters = sum(num_elements(entry.shape) for part in parts for entry in part.entries)

    def load(self) -> None:
        """Bring the model into memory, in float32."""
        self.model, self.processor = load(self.folder, device="cpu", dtype="float32", attention="eager")
        if self.merged is not None:
            self._merge(self.merged, self.dtype or self.stored)
        if self.dtype is not None:
            for parameter in self.model.parameters():
                parameter.data = parameter.data.to(self.dtype).float()

    def _merge(self, lora: Lora, kind: torch.dtype) -> None:
        """Fold the LoRA into the weights, each sum rounded as it is written."""
        for module in lora.pairs:
            weight = self.model.language_model.get_submodule(module).base_layer.weight
            weight.data = (weight.data + lora.update(module)).to(kind).float()
        for parameter in self.model.roles()["lora"]:
            parameter.data.zero_()

    def release(self) -> None:
        """Let go of it again."""
        del self.model, self.processor

    @torch.no_grad()
    def logits(self, ids: Tensor, picture: Picture | None, *, adapter: bool = True) -> tuple[Tensor, Tensor]:
        """Evaluate one sequence; without its adapter all of the method's and LoRA's weights are zero."""
        media = picture.media if picture is not None else None
        rows = []
        for token in ids.tolist():
            rows += [token] if token >= 0 else self._placeholders(token, media or {})
        input_ids = torch.tensor([rows])
        mask = torch.ones_like(input_ids)
        trained = [] if adapter else [*self.model.method.parameters(), *self.model.roles()["lora"]]
        kept = [parameter.detach().clone() for parameter in trained]
        for parameter in trained:
            parameter.zero_()
        found: Tensor = self.model(input_ids=input_ids, attention_mask=mask, media=media).logits[0].float()
        for parameter, values in zip(trained, kept, strict=True):
            parameter.copy_(values)
        hidden = self.model.method.masked_slots & (input_ids[0] >= self.model.host.vocab_size)
        return found, ~hidden

    def _placeholders(self, token: int, media: Mapping[str, Mapping[str, Tensor]]) -> list[int]:
        name = list(media)[IMAGE - token]
        slots, modality = self.processor.slots[name], self.processor.modalities[name]
        raw = {key: values[0] for key, values in media[name].items() if key != "owner"}
        count = modality.positions(raw) if slots == "positions" else int(slots)
        return [self.processor.placeholder_ids[name]] * count
