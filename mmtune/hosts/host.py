"""A uniform view of any Hugging Face transformer, and the sites where low-rank deltas take hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mmtune.core.conditioning import Slot
from mmtune.core.errors import NotPossibleError
from mmtune.hosts.extension import extend
from mmtune.hosts.layout import LAYOUTS, LLAMA, Absent, Fused, Span
from mmtune.nn.lowrank import add_low_rank, apply_low_rank


@dataclass(frozen=True, slots=True)
class Columns:
    """One part of a fused projection: columns ``start .. start + width`` of each of ``groups`` equal stretches."""

    groups: int
    start: int
    width: int
    stride: int

    def widen(self, update: Tensor) -> Tensor:
        """Place the update of a part, ``[..., groups * width]``, among zeros: ``[..., groups * stride]``."""
        grouped = update.reshape(*update.shape[:-1], self.groups, self.width)
        after = self.stride - self.start - self.width
        return nn.functional.pad(grouped, (self.start, after)).flatten(-2)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a low-rank delta takes hold: ``output of last += update(input of first)``.

    Kinds are ``q k v o`` (attention projections), ``m`` (the whole MLP as one map) and ``attention_norm``.
    """

    name: str  # "layers.3.q"
    in_features: int
    out_features: int
    first: nn.Module
    last: nn.Module
    columns: Columns | None = None


class Host:
    """Uniform view of a language model or an encoder, by layout tables instead of class names.

    Args:
        model: A causal LM, its inner model, or an encoder of Hugging Face transformers.

    A model of unknown layout is no error by itself, since token methods need no sites: asking for its layers or for a
    site raises.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config: Any = model.config.get_text_config()
        self.kind: str = self.config.model_type
        self._layout = LAYOUTS.get(self.kind, LLAMA)
        self.input_embeddings: nn.Module = model.get_input_embeddings()
        self.hidden_size = int(self.config.hidden_size)
        self.vocab_size = 0  # encoders embed no ids
        self.embedding_size = self.hidden_size  # width of what enters the model; differs in OPT 350m
        if isinstance(self.input_embeddings, nn.Embedding):
            self.vocab_size = self.input_embeddings.num_embeddings
            self.embedding_size = self.input_embeddings.embedding_dim
        limit = getattr(self.config, self._layout.position_limit, None) if self._layout.position_limit else None
        self.max_positions: int | None = int(limit) if limit else None

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks())

    def blocks(self) -> nn.ModuleList:
        """The transformer's layers, in order.

        Raises:
            NotPossibleError: The model follows no known layout; the message names the paths that were tried.
        """
        roots = (*self._layout.roots, self.model.base_model_prefix)
        tried = list(dict.fromkeys(f"{root}.{self._layout.blocks}".lstrip(".") for root in roots))
        for path in tried:
            try:
                found = self.model.get_submodule(path)
            except AttributeError:
                continue
            if isinstance(found, nn.ModuleList) and len(found):
                return found
        raise NotPossibleError(
            f"The layers of a '{self.kind}' model were not found: looked for {', '.join(tried)}.",
            fix="use a supported base model, or add the family's paths to mmtune/hosts/layout.py",
            allowed=sorted(LAYOUTS),
        )

    def site(self, layer: int, kind: str) -> Site:
        """The place where a delta of this kind takes hold in this layer.

        Args:
            layer: Index of the block, from 0.
            kind: ``q``, ``k``, ``v``, ``o``, ``m`` or ``attention_norm``.

        Raises:
            NotPossibleError: This family or this layer has no such site, with the reason.
        """
        name = f"layers.{layer}.{kind}"
        if not 0 <= layer < self.num_layers:
            raise NotPossibleError(
                f"{self.kind} has no layer {layer}.", where=name, fix=f"choose a layer from 0 to {self.num_layers - 1}"
            )
        if self._layout.refuse is not None and (reason := self._layout.refuse(self.config)):
            raise NotPossibleError(f"This {self.kind} has no sites: {reason}.", where=name)
        place = self._layout.sites.get(kind)
        if place is None:
            known = sorted(self._layout.sites)
            fix = f"use one of: {', '.join(known)}"
            raise NotPossibleError(f"No site of kind '{kind}'.", where=name, fix=fix, allowed=known)
        if isinstance(place, Absent):
            fix = f"leave '{kind}' out of the method's sites"
            raise NotPossibleError(f"{self.kind} has no {kind} site: {place.reason}.", where=name, fix=fix)
        if isinstance(place, Fused):
            return self._fused_site(name, layer, place)
        if isinstance(place, Span):
            return self._whole_site(name, self._module(name, layer, place.first), self._module(name, layer, place.last))
        module = self._module(name, layer, place)
        if kind in ("m", "attention_norm"):
            return Site(name, self.hidden_size, self.hidden_size, module, module)
        return self._whole_site(name, module, module)

    def _whole_site(self, name: str, first: nn.Module, last: nn.Module) -> Site:
        return Site(name, _features(first, name)[0], _features(last, name)[1], first, last)

    def _fused_site(self, name: str, layer: int, place: Fused) -> Site:
        module = self._module(name, layer, place.path)
        in_features, out_features = _features(module, name)
        widths = place.widths(self.config)
        stride = sum(width for _, width in widths.parts)
        if widths.groups * stride != out_features:
            raise NotPossibleError(
                f"{place.path} of {self.kind} is {out_features} wide, not {widths.groups} x {stride} as configured.",
                where=name,
            )
        names = [part for part, _ in widths.parts]
        index = names.index(place.part)
        width = widths.parts[index][1]
        columns = Columns(widths.groups, sum(w for _, w in widths.parts[:index]), width, stride)
        return Site(name, in_features, widths.groups * width, module, module, columns)

    def _module(self, name: str, layer: int, path: str) -> nn.Module:
        try:
            return self.blocks()[layer].get_submodule(path)
        except AttributeError as error:
            raise NotPossibleError(
                f"Layer {layer} of {self.kind} has no module '{path}'.",
                where=name,
                fix="leave this kind of site, or this layer, out of the method's settings",
            ) from error


def attach_deltas(host: Host, sites: Sequence[Site], slot: Slot) -> list[RemovableHandle]:
    """Put low-rank updates onto sites; they act while the slot holds a perception with a delta of the site's name.

    The base weights keep their names and values. Attach before PEFT wraps the linear maps: the updates then stay with
    the wrapped base layers and both add up.

    Args:
        host: The model the sites were taken from.
        sites: Where to add; names must be unique per slot.
        slot: Read at every call. Under gradient checkpointing bind it again in ``context_fn``.

    Returns:
        Handles whose ``remove()`` takes the updates away.
    """
    handles: list[RemovableHandle] = []
    for site in sites:
        update = _SiteUpdate(site.name, site.columns, slot)
        if site.first is site.last:
            handles.append(extend(site.last, update.add))
        else:
            handles.append(extend(site.first, update.keep))
            handles.append(extend(site.last, update.add_to_last))
    return handles


class _SiteUpdate:
    """The changes of one site, by what the slot holds."""

    def __init__(self, name: str, columns: Columns | None, slot: Slot) -> None:
        self.name = name
        self.columns = columns
        self.slot = slot
        self.entered: Tensor | None = None  # the input of the span that is under way, None between calls

    def add(self, x: Tensor, output: Tensor) -> Tensor:
        perception = self.slot.perception
        delta = None if perception is None else perception.deltas.get(self.name)
        if delta is None:
            return output
        if not isinstance(output, Tensor):
            raise NotPossibleError(
                f"The module at {self.name} returns more than one tensor, so nothing can be added to it.",
                where=self.name,
                fix="leave this kind of site out of the method's settings",
            )
        if self.columns is None:
            return add_low_rank(output, x, delta)
        return output + self.columns.widen(apply_low_rank(x, delta).to(output.dtype))

    def keep(self, x: Tensor, output: Tensor) -> Tensor:
        self.entered = None if self.slot.perception is None else x
        return output

    def add_to_last(self, _: Tensor, output: Tensor) -> Tensor:
        x, self.entered = self.entered, None
        return output if x is None else self.add(x, output)


def _features(module: nn.Module, name: str) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    # Quantised linear maps are classes of their own that keep these two attributes.
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(sizes[0], int) and isinstance(sizes[1], int):
        return sizes[0], sizes[1]
    raise NotPossibleError(f"The module at {name} is no linear map.", where=name)
