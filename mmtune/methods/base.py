"""What a method is: encoder features in, perception out, and a name for each group of its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmtune.core import config
from mmtune.core.conditioning import Slot
from mmtune.core.perception import Features, Perception
from mmtune.hosts.host import Host
from mmtune.modalities.base import Modality


@dataclass(frozen=True, slots=True)
class Lead:
    """The one place that a method has for media: right after the BOS, behind a text of its own."""

    present: str  # stands before the item of a sample
    absent: str  # stands there in a sample without items


@dataclass(frozen=True, slots=True)
class Frame:
    """Texts that stand around each item, wherever it is; ordinary words of the vocabulary to the language model."""

    before: str
    after: str


class Method(nn.Module, ABC):
    """A way for perception to reach a language model.

    A subclass is one file and one entry point in ``mmtune.methods``; ``mmtune.testing.check_method`` proves it.

    Args:
        settings: The validated ``model.settings`` of a recipe.
        lm: The language model to work with, as a host; a method never sees its class name.
        modalities: The modalities in use, by name.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[config.Settings]]
    masked_slots: ClassVar[bool] = False  # True: placeholders keep their position but nothing attends to them
    neutral_at_init: ClassVar[bool] = False  # True: a fresh method leaves the language model's answers unchanged
    perceives_text: ClassVar[bool] = False  # True: ``perceive`` has something to say of batches without media too
    runs_language_model: ClassVar[bool] = False  # True: ``perceive`` calls the language model itself, before the others
    changes_encoders: ClassVar[bool] = False  # True: parameters live inside frozen encoders, gradients pass through
    modality_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # by modality; a recipe's own go before these
    check_settings: ClassVar[Mapping[str, Any]] = {}  # settings that suit the tiny model of mmtune.testing
    no_packing: ClassVar[str | None] = (  # why rows cannot stand one behind the other in one long row; None: they can
        "what it makes of media acts on a whole row of the batch, and a packed row holds several samples"
    )
    lead: Lead | None = None  # not None: a sample has one item at most, at this place
    frame: Frame | None = None  # not None: prompts have these texts around each item

    def __init__(self, settings: config.Settings, lm: Host, modalities: Mapping[str, Modality]) -> None:
        super().__init__()
        self.settings = settings
        self.hidden_size = lm.hidden_size

    def attach(self, lm: Host, encoders: Mapping[str, nn.Module], slot: Slot) -> None:
        """Put this method's changes onto its sites. Base weights keep their names. Token methods need none."""

    def encode(
        self, modality: Modality, encoder: nn.Module, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Have an encoder read the items of a batch; see :meth:`Modality.encode`."""
        return modality.encode(encoder, inputs)

    def placeholders(self, modality: str, positions: int) -> int:
        """How many positions the processor writes for one item with ``positions`` encoder positions."""
        return positions

    @abstractmethod
    def perceive(self, features: Mapping[str, Features], batch_size: int) -> Perception:
        """Turn what the encoders saw into tokens, deltas and routes for a batch of ``batch_size`` samples."""

    @abstractmethod
    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        """The method's parameters by role: learning rates and freezing go by these names."""

    def encoder_parameters(self, modality: str) -> list[nn.Parameter]:
        """Those of its own parameters that act inside an encoder and nowhere else."""
        return []

    @property
    def couples_samples(self) -> bool:
        """Whether what a sample gives depends on the others of its batch, so that batches have to keep their order."""
        return False

    def decoding_shift(self, slots: Tensor) -> Tensor:
        """By how much ``positions="original"`` lowers decoding positions, ``[B]``, given the slots of each sample."""
        return torch.zeros_like(slots)

    def prompt_positions(self, positions: Tensor, mask: Tensor) -> Tensor:
        """Where ``positions="original"`` puts the prompts of a batch, ``[B, T]``, given training's and the mask."""
        return positions

    def anchor(self) -> Tensor:
        """A zero that depends on every parameter, so that a batch without media still touches all of them."""
        total: Tensor = sum((parameter.flatten()[:1].sum() for parameter in self.parameters()), torch.zeros(()))
        return total * 0.0
