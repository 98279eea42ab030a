"""Vectors that were computed elsewhere: from .npy or .npz files, lists of numbers, or a column of the data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mmtune.core import config
from mmtune.core.errors import CheckpointError, MediaError, UsageError
from mmtune.modalities.base import NO_SOURCE, Modality
from mmtune.modalities.opening import open_file, place_of

_FORMS = 'a .npy or .npz file, {"path": …, "key": …, "row": …}, or a list of numbers'
_CONFIG = "config.json"


class EmbeddingSettings(config.Settings):
    """What the vectors are."""

    width: config.Size | None = None  # numbers of one vector; read from the source when absent
    max_positions: int = Field(default=4096, ge=1)  # most vectors of one item


class EmbeddingModality(Modality):
    """Precomputed vectors; nothing encodes them.

    An item is one vector ``[D]`` or several ``[P, D]``. The width is ``settings.width``, or that of the source: a
    folder written before, or any .npy or .npz file of such vectors.
    """

    name = "embedding"
    marker = "<embedding>"
    data_key = "embeddings"
    takes: ClassVar[tuple[str, ...]] = ("embedding",)
    has_encoder = False
    settings: EmbeddingSettings

    def __init__(self, source: str, revision: str | None, settings: EmbeddingSettings, width: int) -> None:
        self.source, self.revision = source if Path(source).is_dir() else NO_SOURCE, None  # a file told the width only
        self.settings = settings.model_copy(update={"width": width})
        self.width = width
        self.num_positions = 1

    @classmethod
    def from_source(
        cls, source: str, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> EmbeddingModality:
        """Find out the width.

        Raises:
            UsageError: Neither the settings nor the source tell it.
            CheckpointError: The source is a folder that cannot be read.
            MediaError: The source is a file that holds no vectors.
            RecipeError: Unknown or invalid settings.
        """
        parsed = config.parse_settings(EmbeddingSettings, settings or {}, where=f"encoders.{cls.name}.settings")
        width = parsed.width
        if width is None and Path(source).is_dir():
            width = _width_of_folder(Path(source))
        elif width is None and Path(source).is_file():
            width = int(read_array(source, place_of(source, "embedding")).shape[-1])
        if width is None:
            raise UsageError(
                "The width of the embeddings is not known.",
                where=f"encoders.{cls.name}.settings.width",
                fix=f"--set model.encoders.{cls.name}.settings.width=N, or give a .npy file as source",
            )
        return cls(source, revision, parsed, width)

    def load(self, item: Any) -> dict[str, Tensor]:
        """Read one item.

        Returns:
            ``values`` [P, D].
        """
        where = place_of(item, "embedding")
        array = read_array(item, where)
        if array.ndim == 1:
            array = array[None]
        if array.ndim != 2 or array.shape[1] != self.width or not len(array):
            raise MediaError(
                f"An embedding has the shape {list(array.shape)}, the model takes [P, {self.width}] or [{self.width}].",
                where=where,
                fix="give vectors of the width that the model was made for",
            )
        if len(array) > self.settings.max_positions:
            raise MediaError(
                f"The item holds {len(array)} vectors, the limit is {self.settings.max_positions}.",
                where=where,
                fix='choose one with {"path": …, "row": N}, or raise settings.max_positions',
            )
        if not np.isfinite(array).all():
            raise MediaError("The embedding holds values that are not finite.", where=where, fix="compute it again")
        return {"values": torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))}

    def positions(self, raw: Mapping[str, Tensor]) -> int:
        """One position a vector."""
        return len(raw["values"])

    def collate(self, raws: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Pad to the item with most vectors."""
        values = nn.utils.rnn.pad_sequence([raw["values"] for raw in raws], batch_first=True)  # [N, P, D]
        lengths = torch.tensor([len(raw["values"]) for raw in raws])
        return {"values": values, "mask": torch.arange(values.shape[1]) < lengths.unsqueeze(-1)}

    def load_encoder(self, dtype: torch.dtype) -> nn.Module:
        """Nothing: the vectors pass as they are."""
        return nn.Identity()

    def encode(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The vectors ``[N, P, D]`` and which of them are real."""
        return encoder(inputs["values"]), inputs["mask"], None

    def save_source(self, encoder: nn.Module, folder: str) -> None:
        """Write the width."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"model_type": self.name, "width": self.width}, indent=2)
        (Path(folder) / _CONFIG).write_text(text + "\n", encoding="utf-8")


def _width_of_folder(folder: Path) -> int:
    path = folder / _CONFIG
    try:
        width = json.loads(path.read_text(encoding="utf-8"))["width"]
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width is {width!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"The width of the embeddings cannot be read: {error}", where=str(path), fix="give settings.width"
        ) from error
    return width


def read_array(item: Any, where: str) -> np.ndarray[Any, np.dtype[Any]]:
    """An item as an array of numbers of any shape.

    Raises:
        MediaError: Missing, damaged, or no numbers.
    """
    if isinstance(item, Mapping):
        return _row(_from_file(item.get("path"), item.get("key")), item.get("row"), where)
    if isinstance(item, (str, Path, bytes, bytearray, memoryview)):
        return _from_file(item, None)
    try:
        array = np.asarray(item)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"values of type {array.dtype}")
    except (TypeError, ValueError) as error:
        raise MediaError(f"The embedding is no list of numbers: {error}", where=where, fix=f"give {_FORMS}") from error
    return array


def _row(array: np.ndarray[Any, np.dtype[Any]], row: Any, where: str) -> np.ndarray[Any, np.dtype[Any]]:
    if row is None:
        return array
    if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < len(array):
        raise MediaError(f"There is no row {row!r} among {len(array)}.", where=where, fix=f"use 0 to {len(array) - 1}")
    return array[row : row + 1]


def _from_file(item: Any, key: Any) -> np.ndarray[Any, np.dtype[Any]]:
    where = place_of(item, "embedding")
    with open_file(item, "embedding", forms=_FORMS) as file:
        try:
            found: Any = np.load(file, allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                found = found[_key(found.files, key, where)]
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise MediaError(
                f"Not a .npy or .npz file of numbers, or a damaged one: {error}", where=where, fix="save it again"
            ) from error
        except Exception as error:  # zipfile and zlib have words of their own for damaged archives
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"The .npz file is damaged: {error}", where=where, fix="save it again") from error
    if found.dtype.kind not in "fiu":
        raise MediaError(f"The file holds values of type {found.dtype}.", where=where, fix="save numbers")
    array: np.ndarray[Any, np.dtype[Any]] = found
    return array


def _key(names: Sequence[str], key: Any, where: str) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        raise MediaError(
            f"The file holds the arrays {', '.join(names) or 'none'}" + (f", not '{key}'." if key else "."),
            where=where,
            fix='name one with {"path": …, "key": …}',
        )
    return str(key)
