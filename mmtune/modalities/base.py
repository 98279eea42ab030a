"""What a modality is: raw files in, encoder features out.

A Modality is light and picklable: data-loader workers hold it to open and prepare files. The encoder's weights live in
the model and are handed to ``encode``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmtune.core.config import Settings
from mmtune.core.errors import MediaError

NO_SOURCE = "none"  # of a modality without encoder


class Modality(ABC):
    """One kind of media. A subclass is one file and one entry point in ``mmtune.modalities``.

    Attributes:
        name: Registry key, also the key of its inputs in a batch.
        marker: What stands in a text where an item goes.
        data_key: Key of its list of items in a data row.
        takes: General kinds of media that it reads besides those called by its own name: ``audio`` for one that reads
            what ``--audio`` and the key ``audios`` of a row give.
        has_encoder: False for media that are features already, whose ``source`` may be left out.
        source: Folder or hub id of the encoder.
        width: Features per position, D.
        num_positions: Positions of an ordinary item, P.
        num_blocks: Blocks of the encoder, each D wide, that a method may change; 0 where that is not known.
    """

    name: ClassVar[str]
    marker: ClassVar[str]
    data_key: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    has_encoder: ClassVar[bool] = True
    source: str
    revision: str | None
    settings: Settings
    width: int
    num_positions: int
    has_line_breaks: bool = False
    num_blocks: int = 0

    @classmethod
    @abstractmethod
    def from_source(
        cls, source: str, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> Modality:
        """Read the configuration of an encoder, not its weights."""

    @abstractmethod
    def load(self, item: Any) -> dict[str, Tensor]:
        """Open one item and prepare it on the CPU.

        Raises:
            MediaError: The item is missing, unreadable or of the wrong kind.
        """

    def load_all(self, items: Sequence[Any]) -> list[dict[str, Tensor] | MediaError]:
        """Open and prepare several items as :meth:`load` does each; one that cannot be opened comes as its error.

        A modality whose preparation takes several items at once overrides this, with results equal bit by bit.
        """
        return [self._loaded_or_error(item) for item in items]

    def _loaded_or_error(self, item: Any) -> dict[str, Tensor] | MediaError:
        try:
            return self.load(item)
        except MediaError as error:
            return error

    def preparation(self) -> Any:
        """All that :meth:`load` follows from besides the item and the settings, as a JSON value.

        None where that is not known; then features of its items are not kept between runs (``data.cache_features``).
        """
        return None

    def blank(self) -> dict[str, Tensor] | None:
        """What :meth:`load` gives of an item without content, to see which parameters reading needs.

        None where that differs between items, or is not known; then all parameters of the encoder can be trained.
        """
        return None

    def positions(self, raw: Mapping[str, Tensor]) -> int:
        """Encoder positions of one loaded item, known before the encoder runs."""
        return self.num_positions

    def collate(self, raws: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Stack the items of a batch along a new first axis."""
        return {key: torch.stack([raw[key] for raw in raws]) for key in raws[0]}

    @abstractmethod
    def load_encoder(self, dtype: torch.dtype) -> nn.Module:
        """Load the encoder's weights.

        Raises:
            CheckpointError: No such encoder, or a damaged one.
        """

    def empty_encoder(self, dtype: torch.dtype) -> nn.Module:
        """The encoder on the meta device, to count what it costs; one that reads no weights for it does better."""
        with torch.device("cpu"):
            return self.load_encoder(dtype).to("meta")

    @abstractmethod
    def encode(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run the encoder on collated inputs: values ``[N, P, D]``, mask ``[N, P]`` or None, line breaks or None."""

    @abstractmethod
    def save_source(self, encoder: nn.Module, folder: str) -> None:
        """Write a (tuned or converted) encoder and its preparation so that ``from_source(folder)`` reads it."""
