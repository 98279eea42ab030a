"""LLaVA: projected patches stand in the sequence as tokens."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mmtune.core import config
from mmtune.hosts.host import Host
from mmtune.methods.base import Frame
from mmtune.methods.tokens import TokenMethod
from mmtune.modalities.base import Modality
from mmtune.nn.projector import Projector


class LLaVASettings(config.Settings):
    """Settings of LLaVA."""

    projector: str = "mlp2x_gelu"  # linear, identity or mlpNx_gelu
    start: str = ""  # text before each item, <im_start> in the first releases
    end: str = ""  # text after each item


class LLaVA(TokenMethod):
    """One projector a modality; every encoder position becomes one token.

    Source:
        LLaVA (arXiv 2304.08485) and LLaVA-1.5 (arXiv 2310.03744).
    """

    name = "llava"
    Settings = LLaVASettings
    settings: LLaVASettings

    def __init__(self, settings: LLaVASettings, lm: Host, modalities: Mapping[str, Modality]) -> None:
        super().__init__(settings, lm, modalities)
        if settings.start or settings.end:
            self.frame = Frame(settings.start, settings.end)

    def make_projector(self, name: str, modality: Modality, out_features: int) -> nn.Module:
        """The same kind for every modality."""
        return Projector(self.settings.projector, modality.width, out_features)
