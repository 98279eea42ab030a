"""What LLaVA and multi_token are: every item of media becomes tokens in the sequence, one projector a modality.

Shapes: N items, P encoder positions, D encoder width, K tokens of an item, H hidden size, M tokens of the batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmtune.core import config
from mmtune.core.perception import Features, Perception
from mmtune.hosts.host import Host
from mmtune.methods.base import Method
from mmtune.modalities.base import Modality


class TokenMethod(Method):
    """Media as tokens. A subclass says which projector each modality gets.

    All items of a modality, of all samples, go through its projector at once. Tokens stand where text embeddings do:
    where a language model scales its embeddings inside (Gemma), it scales them alike.
    """

    no_packing = None

    def __init__(self, settings: config.Settings, lm: Host, modalities: Mapping[str, Modality]) -> None:
        super().__init__(settings, lm, modalities)
        self.projector = nn.ModuleDict(
            {name: self.make_projector(name, modality, lm.embedding_size) for name, modality in modalities.items()}
        )
        # The learned end of a row of tiles (LLaVA-1.6); only modalities that lay tiles out have one.
        self.line_break = nn.ParameterDict(
            {
                name: nn.Parameter(torch.randn(lm.embedding_size) / lm.embedding_size**0.5)
                for name, modality in modalities.items()
                if modality.has_line_breaks
            }
        )

    @abstractmethod
    def make_projector(self, name: str, modality: Modality, out_features: int) -> nn.Module:
        """The projector of one modality: ``[N, P, D]`` to ``[N, K, H]``; its ``num_tokens`` tells K before it runs."""

    def placeholders(self, modality: str, positions: int) -> int:
        """As many as the modality's projector makes tokens of one item."""
        return int(self.projector[modality].num_tokens(positions))  # type: ignore[operator]

    def perceive(self, features: Mapping[str, Features], batch_size: int) -> Perception:
        """Project every real position: ``tokens[modality]`` is ``[M, H]``."""
        return Perception(tokens={name: self._tokens(name, seen) for name, seen in features.items()})

    def _tokens(self, name: str, seen: Features) -> Tensor:
        projector = self.projector[name]
        weight = next(projector.parameters(), seen.values)
        tokens: Tensor = projector(seen.values.to(weight.dtype))  # [N, K, H]
        if seen.breaks is not None and name in self.line_break:
            tokens = torch.where(seen.breaks.unsqueeze(-1), self.line_break[name].to(tokens.dtype), tokens)
        if seen.mask is None:
            return tokens.flatten(0, 1)
        return tokens[seen.mask.repeat_interleave(tokens.shape[1] // seen.mask.shape[1], dim=1)]

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        """``projector`` and ``projector.<modality>``."""
        parts = {
            f"projector.{name}": [*module.parameters(), *([self.line_break[name]] if name in self.line_break else [])]
            for name, module in self.projector.items()
        }
        return {"projector": [parameter for part in parts.values() for parameter in part], **parts}
