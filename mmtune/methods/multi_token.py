"""multi_token: any modality as a number of tokens that is fixed for each item."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import nn

from mmtune.core import config
from mmtune.core.errors import RecipeError, nearest
from mmtune.hosts.host import Host
from mmtune.methods.tokens import TokenMethod
from mmtune.modalities.base import Modality
from mmtune.nn.projector import Projector, VectorProjector


class ProjectorSettings(config.Settings):
    """The projector of one modality."""

    kind: Literal["patch", "vector"] | None = None  # by default: vector for an encoder that gives one vector an item
    layers: config.Count = 2  # linear maps, with GELU between
    width: config.Size = 10  # vector: tokens of one vector


class MultiTokenSettings(config.Settings):
    """Settings of multi_token: the projector of each modality; one that is not named takes the defaults."""

    projectors: dict[str, ProjectorSettings] = Field(default_factory=dict)


class MultiToken(TokenMethod):
    """A patch projector (one MLP for every position) or a vector projector (``width`` MLPs on one vector) a modality.

    The sizes are those of the encoder and the language model. Placeholders are ids beyond the vocabulary, so that no
    marker can collide with another or with text, as the published code's hashes may.

    Source:
        multi_token (Sshh 2023, github.com/sshh12/multi_token).
    """

    name = "multi_token"
    Settings = MultiTokenSettings
    settings: MultiTokenSettings

    def __init__(self, settings: MultiTokenSettings, lm: Host, modalities: Mapping[str, Modality]) -> None:
        for name in settings.projectors:
            if name not in modalities:
                guess = nearest(name, modalities)
                raise RecipeError(
                    f"There is a projector for '{name}', but no such modality. The model has: {', '.join(modalities)}.",
                    where=f"model.settings.projectors.{name}",
                    fix=f"write '{guess}'" if guess else f"name the encoder under model.encoders.{name}",
                )
        super().__init__(settings, lm, modalities)

    def make_projector(self, name: str, modality: Modality, out_features: int) -> nn.Module:
        """A patch or a vector projector.

        Raises:
            RecipeError: A vector projector for an encoder that gives several positions an item.
        """
        chosen = self.settings.projectors.get(name, ProjectorSettings())
        pooled = modality.num_positions == 1
        if chosen.kind == "vector" and not pooled:
            raise RecipeError(
                f"A vector projector needs one vector an item, the encoder of '{name}' gives {modality.num_positions}.",
                where=f"model.settings.projectors.{name}.kind",
                fix="use kind: patch, or for pictures the encoder's pooled output (settings: {select: pool})",
            )
        if chosen.kind == "vector" or (chosen.kind is None and pooled):
            return VectorProjector(chosen.layers, modality.width, out_features, chosen.width)
        return Projector(f"mlp{chosen.layers}x_gelu", modality.width, out_features)
