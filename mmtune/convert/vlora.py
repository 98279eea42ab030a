"""Reads VLoRA checkpoints: full, and the generator alone (stage 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.convert.original import START_END, Original, image_settings, notes, original_files, read_original
from mmtune.convert.plan import Part, Plan, Request, change, keep
from mmtune.convert.reference_vlora import VLoRAReference
from mmtune.convert.tensors import Store, StoredTensor, not_understood, require_weight
from mmtune.convert.writer import Entry
from mmtune.core.errors import CheckpointError, NotPossibleError

HEADS = 16  # fixed in the original code
MERGING = "VLoRA's weights depend on the picture: there is no single set of weights to merge into the language model."

# Original name of a block's module -> ours.
BLOCK = {
    "self_attn": "self_attention",
    "multihead_attn": "cross_attention",
    "linear1": "feed_forward_in",
    "linear2": "feed_forward_out",
    "norm1": "norm1",
    "norm2": "norm2",
    "norm3": "norm3",
}


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of a generator, read from its tensors."""

    visual: int  # encoder width
    positions: int  # P
    width: int  # d
    depth: int  # N
    types: str  # one character a type
    layers: int  # n active layers
    every: int  # s
    rank: int  # r
    hidden: int  # D
    separate: bool

    @property
    def decoders(self) -> int:
        """Number of generators."""
        return len(self.types) if self.separate else 1

    @property
    def queries(self) -> int:
        """Queries of one generator."""
        return self.layers if self.separate else self.layers * len(self.types)

    def prefix(self, decoder: int) -> str:
        """Where a generator's tensors are in the original."""
        return f"gen.{decoder}." if self.separate else "gen."


def read(folder: Path, form: str, request: Request, *, merge: bool, dtype: torch.dtype | None) -> Plan:
    """Plan the conversion of a VLoRA checkpoint.

    Args:
        form: ``full`` or ``projector``.
        merge: Always refused, with the reason.
        dtype: Precision to write; as stored when None.

    Raises:
        CheckpointError: Something is missing, unknown, damaged or does not fit.
        NotPossibleError: ``merge``, a LoRA beside the generator, or start and end tokens.
    """
    if merge:
        raise NotPossibleError(MERGING, where="--to merged", fix="use --to mmtune")
    if form == "lora":
        raise NotPossibleError("VLoRA with a LoRA is not read by this version.", where=str(folder))
    original = read_original(folder, form, request)
    if original.is_framed:
        raise NotPossibleError(
            f"VLoRA with start and end tokens ({START_END}) is not read by this version.", where=str(folder)
        )
    sizes = infer(original)
    image = image_settings(original)
    _check_positions(original, sizes, image)
    alpha = _alpha(original)
    parts = [_method_part(original, sizes, dtype), original.tower.part(dtype)]
    if original.base_entry["source"] == "language_model":
        parts.append(original.language.part(dtype))
    return Plan(
        format="vlora",
        form=form,
        method="vlora",
        parts=tuple(part for part in parts if part is not None),
        base=original.base_entry,
        encoders={"image": {**original.tower.source, "settings": image}},
        origins=original.origins,
        settings={
            "rank": sizes.rank,
            "dim": sizes.width,
            "depth": sizes.depth,
            "heads": HEADS,
            "types": sizes.types,
            "every": sizes.every,
            "alpha": alpha,
            "separate": sizes.separate,
        },
        tokenizer=original.tokenizer,
        legacy_tokenizer=True,
        template=original.template,
        dtype=dtype or original.language.dtype,
        max_length=original.max_length,
        notes=notes(original, image),
        sources=original.sources,
        reference=VLoRAReference(original, sizes, image, alpha, dtype),
        original=original_files(original, "vlora"),
    )


def _alpha(original: Original) -> float | None:
    alpha = original.config.get("vlora_alpha")
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float)):
        where = str(original.folder / "config.json")
        raise CheckpointError(f"vlora_alpha is {alpha!r}, neither a number nor null.", where=where, fix="copy it again")
    return alpha


def infer(original: Original) -> Dimensions:
    """The sizes of the generator by its tensors, each compared with config.json.

    Raises:
        CheckpointError: A tensor is missing, unknown or of another shape, or config.json says something else.
    """
    store, config, where = original.projector, original.config, str(original.folder / "config.json")
    visual_projection = _need(store, "visual_proj.weight", 2, original)
    positions = _need(store, "pos_embed", 3, original)
    factors = _need(store, "Bs", 3, original)
    separate = "gen.0.queries" in store
    queries = _need(store, "gen.0.queries" if separate else "gen.queries", 3, original)
    types, every = config.get("vlora_type"), config.get("skip_layers", 1)
    if not isinstance(types, str) or not isinstance(every, int) or every < 1:
        raise CheckpointError(
            "vlora_type or skip_layers is missing.", where=where, fix="copy the original config.json again"
        )
    prefix = "gen.0.decoders." if separate else "gen.decoders."
    sizes = Dimensions(
        visual=visual_projection.shape[1],
        positions=positions.shape[1],
        width=positions.shape[2],
        depth=len({name.removeprefix(prefix).split(".")[0] for name in store if name.startswith(prefix)}),
        types=types,
        layers=queries.shape[1] if separate else queries.shape[1] // max(len(types), 1),
        every=every,
        rank=factors.shape[2] // original.language.hidden_size,
        hidden=original.language.hidden_size,
        separate=separate,
    )
    _compare(original, sizes)
    _check_tensors(original, sizes)
    return sizes


def _need(store: Store, name: str, num_axes: int, original: Original) -> StoredTensor:
    if name not in store or len(store[name].shape) != num_axes:
        state = "is missing" if name not in store else f"has shape {list(store[name].shape)}"
        raise CheckpointError(
            f"Tensor 'model.mm_projector.{name}' {state}.", where=str(original.folder), fix="copy the whole checkpoint"
        )
    return store[name]


def _compare(original: Original, sizes: Dimensions) -> None:
    """Every size that config.json states must be the one that the tensors have."""
    where = str(original.folder / "config.json")
    pairs: Mapping[str, tuple[str, Any]] = {
        "vlora_visual_dim": ("visual_proj.weight", sizes.visual),
        "vlora_pos_num": ("pos_embed", sizes.positions),
        "vlora_dim": ("pos_embed", sizes.width),
        "vlora_depth": ("gen", sizes.depth),
        "vlora_rank": ("Bs", sizes.rank),
        "weights_sep": ("gen", sizes.separate),
        "vlora_llm_dim": ("the language model", sizes.hidden),
        "vlora_llm_depth": ("the language model", original.language.num_layers),
        "mm_hidden_size": ("the vision tower", original.tower.config["hidden_size"]),
    }
    for key, (tensor, found) in pairs.items():
        if key in original.config and original.config[key] != found:
            raise CheckpointError(
                f"config.json says {key} {original.config[key]}, but {tensor} has {found}.",
                where=where,
                fix="use the config.json and the weights of one and the same checkpoint",
            )
    if sizes.layers * sizes.every != original.language.num_layers:
        raise CheckpointError(
            f"config.json says skip_layers {sizes.every}, but the queries are for {sizes.layers} of "
            f"{original.language.num_layers} layers.",
            where=where,
            fix="use the config.json and the weights of one and the same checkpoint",
        )


def _check_positions(original: Original, sizes: Dimensions, image: Mapping[str, Any]) -> None:
    tower = original.tower.config
    count = (int(tower["image_size"]) // int(tower["patch_size"])) ** 2 + int(image["select"] == "cls_patch")
    if sizes.positions != count:
        raise CheckpointError(
            f"Tensor 'model.mm_projector.pos_embed' has {sizes.positions} positions, the vision tower gives {count}.",
            where=str(original.folder),
            fix="give the tower that the checkpoint was trained with: --vision",
        )


def _check_tensors(original: Original, sizes: Dimensions) -> None:
    expected = dict(expected_shapes(sizes))
    store = original.projector
    if unknown := store.keys() - expected.keys():
        raise not_understood(unknown, store, form=f"VLoRA generator with types '{sizes.types}'")
    if missing := expected.keys() - store.keys():
        raise CheckpointError(
            f"Tensor 'model.mm_projector.{min(missing)}' is missing.",
            where=str(original.folder),
            fix="copy the whole checkpoint",
        )
    for name, shape in expected.items():
        require_weight(store[name], shape, because="the sizes of the other tensors and config.json")


def expected_shapes(sizes: Dimensions) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the original generator with its shape."""
    d, outputs = sizes.width, sizes.hidden * sizes.rank
    yield "visual_proj.weight", (d, sizes.visual)
    yield "visual_proj.bias", (d,)
    yield "pos_embed", (1, sizes.positions, d)
    yield "Bs", (1, len(sizes.types) * sizes.layers, outputs)
    for decoder in range(sizes.decoders):
        prefix = sizes.prefix(decoder)
        yield f"{prefix}queries", (1, sizes.queries, d)
        for block in range(sizes.depth):
            for name, shape in _block_shapes(d):
                yield f"{prefix}decoders.{block}.{name}", shape
        yield f"{prefix}norm.weight", (d,)
        yield f"{prefix}norm.bias", (d,)
        yield f"{prefix}weights_head.weight", (outputs, d)
        yield f"{prefix}weights_head.bias", (outputs,)


def _block_shapes(d: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for attention in ("self_attn", "multihead_attn"):
        yield f"{attention}.in_proj_weight", (3 * d, d)
        yield f"{attention}.in_proj_bias", (3 * d,)
        yield f"{attention}.out_proj.weight", (d, d)
        yield f"{attention}.out_proj.bias", (d,)
    yield "linear1.weight", (4 * d, d)
    yield "linear1.bias", (4 * d,)
    yield "linear2.weight", (d, 4 * d)
    yield "linear2.bias", (d,)
    for norm in ("norm1", "norm2", "norm3"):
        yield f"{norm}.weight", (d,)
        yield f"{norm}.bias", (d,)


def _method_part(original: Original, sizes: Dimensions, dtype: torch.dtype | None) -> Part:
    store = original.projector
    entries = [keep(tensor, translate(name, sizes), dtype) for name, tensor in store.items() if name != "Bs"]
    factors = store["Bs"]
    for index, kind in enumerate(sizes.types):
        shape = (sizes.layers, sizes.hidden, sizes.rank)
        entries.append(_factor(f"delta_b.{kind}", shape, factors, index, dtype))
    return Part("", "adapter", tuple(sorted(entries, key=lambda entry: entry.name)), sharded=False)


def translate(name: str, sizes: Dimensions) -> str:
    """Our name of an original tensor, both without what stands before the generator."""
    if name.startswith("visual_proj."):
        return f"generator.visual_projection.{name.removeprefix('visual_proj.')}"
    if name == "pos_embed":
        return "generator.position_embedding"
    words = name.split(".")
    decoder, rest = (words[1], words[2:]) if sizes.separate else ("0", words[1:])
    prefix = f"generator.decoders.{decoder}."
    if rest[0] == "decoders":
        return prefix + ".".join(("blocks", rest[1], BLOCK[rest[2]], *rest[3:]))
    if rest[0] == "weights_head":
        return prefix + ".".join(("head", *rest[1:]))
    return prefix + ".".join(rest)


def _factor(
    name: str, shape: tuple[int, int, int], factors: StoredTensor, index: int, dtype: torch.dtype | None
) -> Entry:
    """B of one type out of the one tensor that holds all, type by type and then layer by layer."""
    read: Callable[[], Tensor] = lambda: factors.read().view(-1, *shape)[index]  # noqa: E731
    kind = dtype if dtype is not None and factors.dtype.is_floating_point else factors.dtype
    return change(name, shape, kind, read)
