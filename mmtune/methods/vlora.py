"""VLoRA: a picture becomes low-rank weights of the language model; no visual tokens.

Shapes: B samples, S samples with media, n active layers, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from mmtune.core import config
from mmtune.core.conditioning import Slot
from mmtune.core.errors import NotPossibleError, UsageError
from mmtune.core.perception import Features, LowRank, Perception
from mmtune.hosts.host import Host, Site, attach_deltas
from mmtune.methods.base import Method
from mmtune.modalities.base import Modality
from mmtune.nn.gather import group_by_owner
from mmtune.nn.weights_generator import WeightsGenerator


class VLoRASettings(config.Settings):
    """Settings of VLoRA; the defaults are those of the published 7B model."""

    rank: config.Size = 64
    dim: config.Size = 512  # width of the generator
    depth: config.Count = 8  # decoder blocks
    heads: config.Count = 16
    types: str = "qkvom"  # sites of a layer that get weights: q k v o and m, the whole MLP
    every: int = Field(default=4, ge=1)  # layers i with (i + 1) % every == 0 are changed
    alpha: float | None = 64  # the update is scaled by alpha / rank; null scales by 1
    separate: bool = True  # one generator a type; false: one for all
    placeholder: Literal["slot", "none"] = "slot"  # the masked position that the published model keeps for a picture
    initialization: Literal["paper", "scaled"] = "paper"
    normalize_features: bool = False  # a LayerNorm on the features, not part of the published model


class VLoRA(Method):
    """Queries attend to patches and give A; B is learned, shared by all pictures and zero at the start.

    Raises:
        UsageError: ``types`` names a type that does not exist or twice, or no layer is active.
        NotPossibleError: More than one modality, or one generator for sites of unequal input width.

    Source:
        VLoRA (arXiv 2405.20339), sections 3.2 and 3.3.
    """

    name = "vlora"
    Settings = VLoRASettings
    masked_slots = True
    neutral_at_init = True
    check_settings: ClassVar[Mapping[str, Any]] = {"rank": 4, "dim": 32, "depth": 1, "heads": 2, "every": 2}

    def __init__(self, settings: VLoRASettings, lm: Host, modalities: Mapping[str, Modality]) -> None:
        super().__init__(settings, lm, modalities)
        self.config = settings
        _check_types(settings)
        if len(modalities) != 1:
            raise NotPossibleError(
                f"VLoRA reads one modality, got {', '.join(modalities) or 'none'}.", fix="use method llava for several"
            )
        self.layers = [layer for layer in range(lm.num_layers) if (layer + 1) % settings.every == 0]
        if not self.layers:
            raise UsageError(
                f"every={settings.every} leaves none of the {lm.num_layers} layers to change.",
                where="model.settings.every",
                fix=f"use a value from 1 to {lm.num_layers}",
            )
        self.sites = {kind: [lm.site(layer, kind) for layer in self.layers] for kind in settings.types}
        modality = next(iter(modalities.values()))
        self.generator = WeightsGenerator(
            modality.width,
            modality.num_positions,
            self._decoder_shapes(),
            width=settings.dim,
            depth=settings.depth,
            heads=settings.heads,
            normalize_features=settings.normalize_features,
            initialization=settings.initialization,
        )
        self.delta_b = nn.ParameterDict(
            {
                kind: nn.Parameter(torch.zeros(len(sites), sites[0].out_features, settings.rank))
                for kind, sites in self.sites.items()
            }
        )

    def _decoder_shapes(self) -> list[tuple[int, int]]:
        """Queries and output length of each decoder: one a type, or one for all."""
        lengths = {kind: sites[0].in_features * self.config.rank for kind, sites in self.sites.items()}
        if self.config.separate:
            return [(len(self.layers), length) for length in lengths.values()]
        if len(set(lengths.values())) > 1:
            widths = ", ".join(f"{kind}: {sites[0].in_features}" for kind, sites in self.sites.items())
            raise NotPossibleError(
                f"One generator for all types needs sites of equal input width, this language model has {widths}.",
                where="model.settings.separate",
                fix="set model.settings.separate=true",
            )
        return [(len(self.layers) * len(lengths), next(iter(lengths.values())))]

    def attach(self, lm: Host, encoders: Mapping[str, nn.Module], slot: Slot) -> None:
        """Put the low-rank path onto every active site."""
        attach_deltas(lm, self._all_sites(), slot)

    def _all_sites(self) -> list[Site]:
        return [site for sites in self.sites.values() for site in sites]

    def placeholders(self, modality: str, positions: int) -> int:
        """One masked slot an item, or none."""
        return 1 if self.config.placeholder == "slot" else 0

    def decoding_shift(self, slots: Tensor) -> Tensor:
        """The original's cached decoding forgets the masked slots when it counts positions."""
        return slots

    def perceive(self, features: Mapping[str, Features], batch_size: int) -> Perception:
        """Generate A for the samples that have pictures; the others get exactly the plain language model."""
        if not features:
            return Perception()
        values, mask, samples = group_by_owner(next(iter(features.values())))
        dtype = self.generator.position_embedding.dtype
        outputs = self.generator(values.to(dtype), mask)
        factors = self._split(outputs)  # kind -> [S, n, in, r]
        deltas = {}
        for kind, sites in self.sites.items():
            a = factors[kind]
            if len(samples) < batch_size:
                a = a.new_zeros(batch_size, *a.shape[1:]).index_put((samples,), a)  # [B, n, in, r]
            for index, site in enumerate(sites):
                b = self.delta_b[kind][index].transpose(0, 1) * self.scale  # [r, out]
                deltas[site.name] = LowRank(a[:, index], b.unsqueeze(0))
        return Perception(deltas=deltas)

    @property
    def scale(self) -> float:
        """alpha / rank, or 1 without alpha."""
        return 1.0 if self.config.alpha is None else self.config.alpha / self.config.rank

    def _split(self, outputs: list[Tensor]) -> dict[str, Tensor]:
        if self.config.separate:
            by_kind = dict(zip(self.sites, outputs, strict=True))
        else:
            by_kind = dict(zip(self.sites, outputs[0].chunk(len(self.sites), dim=1), strict=True))  # type-major
        return {kind: output.view(*output.shape[:-1], -1, self.config.rank) for kind, output in by_kind.items()}

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        """``generator`` and ``delta_b``, which wants a higher learning rate on small data."""
        return {
            "generator": list(self.generator.parameters()),
            "delta_b": [cast(nn.Parameter, parameter) for parameter in self.delta_b.values()],
        }


def _check_types(settings: VLoRASettings) -> None:
    types = settings.types
    if not types or len(set(types)) != len(types) or set(types) - set("qkvom"):
        raise UsageError(
            f"types '{types}' must be made of q, k, v, o and m, each at most once.",
            where="model.settings.types",
            fix="use 'qkvom' as the published model does",
        )
