"""LLaVA: projected patches stand in the sequence as tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmtune.core import config
from mmtune.core.perception import Features, Perception
from mmtune.hosts.host import Host
from mmtune.methods.base import Method
from mmtune.modalities.base import Modality
from mmtune.nn.projector import Projector


class LLaVASettings(config.Settings):
    """Settings of LLaVA."""

    projector: str = "mlp2x_gelu"  # linear, identity or mlpNx_gelu


class LLaVA(Method):
    """One projector a modality; every encoder position becomes one token.

    Source:
        LLaVA (arXiv 2304.08485) and LLaVA-1.5 (arXiv 2310.03744).
    """

    name = "llava"
    Settings = LLaVASettings

    def __init__(self, settings: LLaVASettings, lm: Host, modalities: Mapping[str, Modality]) -> None:
        super().__init__(settings, lm, modalities)
        self.projector = nn.ModuleDict(
            {
                name: Projector(settings.projector, modality.width, lm.embedding_size)
                for name, modality in modalities.items()
            }
        )
        # The learned end of a row of tiles (LLaVA-1.6); only modalities that lay tiles out have one.
        self.line_break = nn.ParameterDict(
            {
                name: nn.Parameter(torch.randn(lm.embedding_size) / lm.embedding_size**0.5)
                for name, modality in modalities.items()
                if modality.has_line_breaks
            }
        )

    def perceive(self, features: Mapping[str, Features], batch_size: int) -> Perception:
        """Project every real position: ``tokens[modality]`` is ``[M, H]``."""
        return Perception(tokens={name: self._tokens(name, seen) for name, seen in features.items()})

    def _tokens(self, name: str, seen: Features) -> Tensor:
        projector = self.projector[name]
        weight = next(projector.parameters(), seen.values)
        tokens: Tensor = projector(seen.values.to(weight.dtype))  # [N, P, H]
        if seen.breaks is not None and name in self.line_break:
            tokens = torch.where(seen.breaks.unsqueeze(-1), self.line_break[name].to(tokens.dtype), tokens)
        return tokens.flatten(0, 1) if seen.mask is None else tokens[seen.mask]

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        """``projector`` and ``projector.<modality>``."""
        parts = {
            f"projector.{name}": [*module.parameters(), *([self.line_break[name]] if name in self.line_break else [])]
            for name, module in self.projector.items()
        }
        return {"projector": [parameter for part in parts.values() for parameter in part], **parts}
