"""LaVIN: routed adapters inside the language model and the encoder, and a picture's class tokens in the sequence.

Shapes: B samples, N pictures, L tapped class tokens of a picture, H width of the embeddings, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from mmtune.core import config
from mmtune.core.conditioning import Slot
from mmtune.core.errors import NotPossibleError
from mmtune.core.perception import Features, Perception
from mmtune.hosts.blocks import attach_routed, attach_self_routed
from mmtune.hosts.host import Host, Site
from mmtune.methods.base import Lead, Method
from mmtune.modalities.base import Modality
from mmtune.nn.adapter import RoutedAdapter

TEXT, PICTURE = 0, 1  # rows of the modality embedding


class LaVINSettings(config.Settings):
    """Settings of LaVIN; the defaults are those of the published 7B model, whose 13B has a temperature of 5."""

    adapter_dim: int = Field(default=8, ge=2, le=config.LARGEST_SIZE)  # bottleneck of an adapter, even
    scale: float = 1.0  # of what an adapter adds
    temperature: float = Field(default=10.0, gt=0)  # of the routers
    dropout: float = Field(default=0.1, ge=0, lt=1)  # inside the adapters
    hidden: config.Size = 128  # of the projector
    tokens: config.Size = 1  # that a class token becomes; the published model has one
    routing: Literal["per_sample", "batch0"] = "per_sample"  # in the encoder; batch0: the first sample decides for all
    present: str = "Image: "  # text before a picture
    absent: str = "Image: N/A"  # text in the place of a picture


class LaVIN(Method):
    """Adapters before attention in every block, mixed by what a decision token asks for.

    The decision token, which says whether the sample has a picture, attends to itself alone and nothing attends to it.
    It therefore runs by itself, as a sequence of one position, and leaves the routes of every block behind; the sample
    then runs without it. For rotary positions this is exactly the published layout, gradients and dropout included. A
    model with absolute positions sees the sequence one position earlier than that layout would have it, which is this
    method's definition there: training and decoding agree.

    Where attention and the feed-forward share their norm (phi, cohere, falcon, gptj, codegen), both read what the
    adapter makes of it.

    Raises:
        NotPossibleError: More than one modality, or a language model or encoder without a norm before its attention.

    Source:
        LaVIN (arXiv 2305.15023), section 3, with the routing and the prefix texts of its code.
    """

    name = "lavin"
    Settings = LaVINSettings
    settings: LaVINSettings
    neutral_at_init = True
    perceives_text = True
    runs_language_model = True
    changes_encoders = True
    modality_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "image": {"select": "taps", "tap_every": 4, "aspect": "stretch", "statistics": "imagenet"}
    }

    def __init__(self, settings: LaVINSettings, lm: Host, modalities: Mapping[str, Modality]) -> None:
        super().__init__(settings, lm, modalities)
        if len(modalities) != 1:
            raise NotPossibleError(
                f"LaVIN reads one modality, got {', '.join(modalities) or 'none'}.", fix="use method llava for several"
            )
        self.lead = Lead(settings.present, settings.absent)
        self._lm = lm
        self._sites = _norms(lm)
        name, modality = next(iter(modalities.items()))
        if not modality.num_blocks:
            raise NotPossibleError(
                f"The blocks of the {name} encoder are not known, so that nothing can be put into them.",
                where=f"model.encoders.{name}",
                fix="use an image encoder, or another method",
            )
        self.adapters = nn.ModuleDict(
            {
                "language": self._make_adapters(len(self._sites), lm.hidden_size),
                name: self._make_adapters(modality.num_blocks, modality.width),
            }
        )
        width = settings.tokens * lm.embedding_size
        self.projector = nn.Sequential(
            nn.Linear(modality.width, settings.hidden), nn.SiLU(), nn.Linear(settings.hidden, width)
        )
        for layer in (self.projector[0], self.projector[2]):
            nn.init.xavier_uniform_(cast(nn.Linear, layer).weight)
            nn.init.zeros_(cast(nn.Linear, layer).bias)
        self.modality_embedding = nn.Embedding(2, lm.embedding_size)

    def _make_adapters(self, count: int, width: int) -> nn.ModuleList:
        chosen = self.settings
        return nn.ModuleList(
            RoutedAdapter(
                width,
                chosen.adapter_dim,
                temperature=chosen.temperature,
                scale=chosen.scale,
                dropout=chosen.dropout,
            )
            for _ in range(count)
        )

    def attach(self, lm: Host, encoders: Mapping[str, nn.Module], slot: Slot) -> None:
        """Put the adapters onto the norms before attention, in the language model and in the encoders."""
        self._slot = slot
        attach_routed(self._sites, self._adapters_of("language"), slot)
        for name, encoder in encoders.items():
            sites = _norms(Host(cast(Any, encoder)))
            attach_self_routed(sites, self._adapters_of(name), by_first=self.settings.routing == "batch0")

    def encoder_parameters(self, modality: str) -> list[nn.Parameter]:
        """The adapters of its blocks."""
        return list(self.adapters[modality].parameters())

    def _adapters_of(self, name: str) -> list[RoutedAdapter]:
        return [cast(RoutedAdapter, adapter) for adapter in cast(nn.ModuleList, self.adapters[name])]

    def placeholders(self, modality: str, positions: int) -> int:
        """``tokens`` for each class token."""
        return positions * self.settings.tokens

    def encode(
        self, modality: Modality, encoder: nn.Module, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Read the pictures. For ``batch0`` a blank one decides where sample 0 has none, as in the published code."""
        if self.settings.routing == "per_sample" or int(inputs["owner"][0]) == 0:
            return modality.encode(encoder, inputs)
        blank = {key: torch.cat([torch.zeros_like(value[:1]), value]) for key, value in inputs.items()}
        values, mask, breaks = modality.encode(encoder, blank)
        return values[1:], None if mask is None else mask[1:], None if breaks is None else breaks[1:]

    def perceive(self, features: Mapping[str, Features], batch_size: int) -> Perception:
        """Project the class tokens, ``[N * L * tokens, H]``, and let each sample's decision token choose its routes."""
        table = self.modality_embedding.weight
        kinds = torch.full((batch_size,), TEXT, device=table.device)
        tokens = {}
        for name, seen in features.items():
            kinds = kinds.index_fill(0, seen.owner.to(table.device), PICTURE)
            tokens[name] = self.projector(seen.values.to(table.dtype)).reshape(-1, table.shape[1])
        return Perception(tokens=tokens, routes=self._decide(kinds))

    def _decide(self, kinds: Tensor) -> dict[str, Tensor]:
        """The routes of every site, each ``[B, E]``.

        Each sample has a token of its own: in training the dropout it meets differs.
        """
        weight = cast(Tensor, self._lm.input_embeddings.weight)
        token = self.modality_embedding(kinds).unsqueeze(1).to(weight.dtype)  # [B, 1, H]
        decisions: dict[str, Tensor] = {}
        mask = torch.ones(token.shape[:2], dtype=torch.long, device=token.device)
        with self._slot.bind(Perception(decisions=decisions)):
            self._lm.model(inputs_embeds=token, attention_mask=mask, use_cache=False)
        return dict(decisions)  # a copy: checkpointed blocks run again in backward and would write into it

    @property
    def couples_samples(self) -> bool:
        """With ``batch0`` the first sample's picture routes all others."""
        return self.settings.routing == "batch0"

    def prompt_positions(self, positions: Tensor, mask: Tensor) -> Tensor:
        """The published decoding starts at the batch's shortest prompt, and all that follows stands one too early."""
        shortest = mask.sum(-1).min()
        return torch.where(positions >= shortest, positions - 1, positions)

    def decoding_shift(self, slots: Tensor) -> Tensor:
        """Its cache does not hold the decision token, by which it counts positions."""
        return torch.ones_like(slots)

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        """``adapters``, ``router`` (of all of them), ``projector`` and ``modality_embedding``."""
        routers = [adapter.router for name in self.adapters for adapter in self._adapters_of(name)]
        router = [parameter for module in routers for parameter in module.parameters()]
        known = set(map(id, router))
        return {
            "adapters": [parameter for parameter in self.adapters.parameters() if id(parameter) not in known],
            "router": router,
            "projector": list(self.projector.parameters()),
            "modality_embedding": list(self.modality_embedding.parameters()),
        }


def _norms(host: Host) -> list[Site]:
    return [host.site(layer, "attention_norm") for layer in range(host.num_layers)]
