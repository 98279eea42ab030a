"""LLaVA: projected patches stand in the sequence as tokens."""

from __future__ import annotations

from torch import nn

from mmtune.core import config
from mmtune.methods.tokens import TokenMethod
from mmtune.modalities.base import Modality
from mmtune.nn.projector import Projector


class LLaVASettings(config.Settings):
    """Settings of LLaVA."""

    projector: str = "mlp2x_gelu"  # linear, identity or mlpNx_gelu


class LLaVA(TokenMethod):
    """One projector a modality; every encoder position becomes one token.

    Source:
        LLaVA (arXiv 2304.08485) and LLaVA-1.5 (arXiv 2310.03744).
    """

    name = "llava"
    Settings = LLaVASettings
    settings: LLaVASettings

    def make_projector(self, name: str, modality: Modality, out_features: int) -> nn.Module:
        """The same kind for every modality."""
        return Projector(self.settings.projector, modality.width, out_features)
