"""Reads LLaVA checkpoints: full, LoRA, and the projector alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmtune.convert.lora import Lora, merged_part, read_lora
from mmtune.convert.original import FRAME, Original, image_settings, notes, original_files, read_original
from mmtune.convert.plan import Part, Plan, Reference, Request, keep
from mmtune.convert.reference_llava import LLaVAReference
from mmtune.convert.tensors import Store, not_understood, require_weight
from mmtune.core.errors import CheckpointError, NotPossibleError
from mmtune.core.registry import canonical
from mmtune.nn.projector import Projector

_LAYER = re.compile(r"^(\d+)\.(weight|bias)$")


def read(folder: Path, form: str, request: Request, *, merge: bool, dtype: torch.dtype | None) -> Plan:
    """Plan the conversion of a LLaVA checkpoint.

    Args:
        form: ``full``, ``lora`` or ``projector``.
        merge: Fold a LoRA into the language model.
        dtype: Precision to write; as stored when None.

    Raises:
        CheckpointError: Something is missing, unknown, damaged or does not fit.
        NotPossibleError: A variant that this version does not read, or nothing to merge.
    """
    return plan_llava(read_original(folder, form, request), merge=merge, dtype=dtype)


def plan_llava(
    original: Original,
    *,
    merge: bool,
    dtype: torch.dtype | None,
    format: str = "llava",
    reference: Reference | None = None,
) -> Plan:
    """The plan of an opened checkpoint, whichever format it was read from.

    Raises:
        CheckpointError: The projector does not fit.
        NotPossibleError: Nothing to merge.
    """
    form, folder = original.form, original.folder
    kind = projector_kind(original)
    image = image_settings(original)
    lora = read_lora(original.folder, original.language) if form == "lora" else None
    if merge and lora is None:
        raise NotPossibleError(
            "There is no LoRA to merge in this checkpoint.", where=str(folder), fix="use --to mmtune"
        )
    parts = [
        _method_part(original, image, dtype),
        *_language_parts(original, lora, merge, dtype),
        original.tower.part(dtype),
    ]
    return Plan(
        format=format,
        form=form,
        method="llava",
        parts=tuple(part for part in parts if part is not None),
        base=original.base_entry if not merge else {"source": "language_model", "revision": None, "probe": None},
        encoders={"image": {**original.tower.source, "settings": image}},
        origins=original.origins,
        settings={"projector": kind, **(dict(zip(("start", "end"), FRAME, strict=True)) if original.is_framed else {})},
        tokenizer=original.tokenizer,
        legacy_tokenizer=False,
        template=original.template,
        dtype=dtype or original.language.dtype,
        max_length=original.max_length,
        notes=notes(original, image),
        sources=original.sources,
        reference=reference or LLaVAReference(original, image, lora, dtype, merge=merge),
        original=original_files(original, format),
        control_tokens=original.control_tokens,
    )


def projector_kind(original: Original) -> str:
    """The projector that the tensors form, which must be the one that config.json names.

    Raises:
        CheckpointError: They disagree, or a tensor has another shape.
    """
    named = canonical(str(original.config.get("mm_projector_type") or "linear"))
    found = kind_of_tensors(original.projector)
    if not original.projector and named != "identity":
        raise CheckpointError(
            "The projector's tensors (mm_projector) are missing.",
            where=str(original.folder),
            fix="copy mm_projector.bin or non_lora_trainables.bin; for a LoRA saved during training, which has none, "
            "give one with --set projector=FILE",
        )
    if found != named:
        names = ", ".join(sorted(original.projector)) or "none"
        raise CheckpointError(
            f"config.json says mm_projector_type '{named}', the tensors of mm_projector form '{found}' ({names}).",
            where=str(original.folder),
            fix="use the config.json and the weights of one and the same checkpoint",
        )
    _check_shapes(original, named)
    return named


def kind_of_tensors(store: Store) -> str:
    """``linear``, ``mlpNx_gelu`` or ``identity`` by the names of the tensors.

    Raises:
        CheckpointError: Names of no projector.
    """
    if not store:
        return "identity"
    if set(store) == {"weight", "bias"}:
        return "linear"
    numbers = sorted({int(match.group(1)) for match in map(_LAYER.match, store) if match})
    if not numbers:
        raise not_understood(store, store, form="LLaVA projector")
    return f"mlp{numbers[-1] // 2 + 1}x_gelu"


def _check_shapes(original: Original, kind: str) -> None:
    width, hidden = int(original.tower.config["hidden_size"]), original.language.hidden_size
    stated = original.config.get("mm_hidden_size", width)
    if stated != width:
        raise CheckpointError(
            f"config.json says mm_hidden_size {stated}, the vision tower has width {width}.",
            where=str(original.folder),
            fix="give the tower that the checkpoint was trained with: --vision",
        )
    with torch.device("meta"):
        expected = Projector(kind, width, hidden).layers.state_dict()
    names = {_source_name(name, original.projector): tuple(tensor.shape) for name, tensor in expected.items()}
    if unknown := original.projector.keys() - names.keys():
        raise not_understood(unknown, original.projector, form=f"projector of kind {kind}")
    if missing := names.keys() - original.projector.keys():
        raise CheckpointError(f"Tensor 'mm_projector.{min(missing)}' is missing.", where=str(original.folder))
    for name, shape in names.items():
        require_weight(original.projector[name], shape, because=f"a projector from {width} to {hidden}")


def _source_name(name: str, store: Store) -> str:
    """``0.weight`` is plain ``weight`` in a checkpoint whose projector is one linear layer."""
    return name.removeprefix("0.") if "weight" in store else name


def _method_part(original: Original, image: Mapping[str, Any], dtype: torch.dtype | None) -> Part:
    target = "projector.image.layers."
    entries = [
        keep(tensor, f"{target}0.{name}" if name in ("weight", "bias") else target + name, dtype)
        for name, tensor in original.projector.items()
    ]
    if image.get("merge") == "spatial_unpad":
        if original.newline is None:
            raise CheckpointError("Tensor 'model.image_newline' is missing.", where=str(original.folder))
        require_weight(original.newline, (original.language.hidden_size,), because="config.json")
        entries.append(keep(original.newline, "line_break.image", dtype))
    return Part(
        "", "adapter", tuple(sorted(entries, key=lambda entry: entry.name)), sharded=False, origin=original.folder
    )


def _language_parts(original: Original, lora: Lora | None, merge: bool, dtype: torch.dtype | None) -> list[Part]:
    if lora is not None and merge:
        return [merged_part(original.language, lora, dtype)]
    parts = [original.language.part(dtype)] if original.base_entry["source"] == "language_model" else []
    return parts if lora is None else [*parts, lora.part(dtype)]
