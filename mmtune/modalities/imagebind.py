"""Pictures, sounds and texts through ImageBind, where its package is installed: one vector an item."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmtune.core import config
from mmtune.core.errors import CheckpointError, MediaError, NotPossibleError
from mmtune.modalities.base import Modality
from mmtune.modalities.opening import open_file, place_of

_SOUNDS = (".wav", ".flac", ".mp3", ".ogg")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_FORMS = 'a path, bytes, or {"text": "…"}'
_WIDTH = 1024  # of imagebind_huge, the one model there is
_WEIGHTS = "imagebind_huge.pth"
_HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM")  # of pictures in memory; anything else is taken for a sound


class ImageBindSettings(config.Settings):
    """ImageBind has nothing to choose."""


class ImageBindModality(Modality):
    """Items of several kinds in one space of vectors.

    The kind of a file goes by its ending, in any case of letters; text is given as ``{"text": …}``. Items of one kind
    go through the encoder together.

    Source:
        ImageBind (arXiv 2305.05665); multi_token's ``imagebind``.
    """

    name = "imagebind"
    marker = "<imagebind>"
    data_key = "imagebinds"
    takes: ClassVar[tuple[str, ...]] = ("image", "audio")
    settings: ImageBindSettings

    def __init__(self, source: str, revision: str | None, settings: ImageBindSettings) -> None:
        self.source, self.revision, self.settings = source, revision, settings
        self.width = _WIDTH
        self.num_positions = 1

    @classmethod
    def from_source(
        cls, source: str, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> ImageBindModality:
        """Take note of the source; nothing is read, so that checkpoints can be looked at without the encoder.

        Raises:
            RecipeError: Unknown settings.
        """
        parsed = config.parse_settings(ImageBindSettings, settings or {}, where=f"encoders.{cls.name}.settings")
        return cls(source, revision, parsed)

    def load(self, item: Any) -> dict[str, Tensor]:
        """Open one item with ImageBind's own preparation.

        Returns:
            One of ``vision``, ``audio`` and ``text``.

        Raises:
            MediaError: Missing, unreadable, or of no known kind.
            NotPossibleError: The package is not installed.
        """
        if isinstance(item, Mapping) and isinstance(item.get("text"), str):
            if not item["text"].strip():
                raise MediaError("The text is empty.", fix="give a text")
            return {"text": _package("data").load_and_transform_text([item["text"]], "cpu")[0]}
        given = item.get("path") if isinstance(item, Mapping) else item
        where = place_of(given, "item for ImageBind")
        with _on_disk(given, where) as path:
            data = _package("data")
            sound = path.suffix.lower() in _SOUNDS
            read = data.load_and_transform_audio_data if sound else data.load_and_transform_vision_data
            try:
                return {"audio" if sound else "vision": read([str(path)], "cpu")[0]}
            except (OSError, ValueError, RuntimeError) as error:
                raise MediaError(f"The item cannot be read: {error}", where=where, fix="save it again") from error

    def collate(self, raws: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The items of each kind together, with their places in the batch."""
        inputs: dict[str, Tensor] = {}
        for kind in ("vision", "audio", "text"):
            places = [index for index, raw in enumerate(raws) if kind in raw]
            if places:
                inputs[kind] = torch.stack([raws[index][kind] for index in places])
                inputs[f"{kind}_places"] = torch.tensor(places)
        return inputs

    def load_encoder(self, dtype: torch.dtype) -> nn.Module:
        """Load the weights from a file, a folder that holds ``imagebind_huge.pth``, or else from their publisher.

        Raises:
            NotPossibleError: The package is not installed.
            CheckpointError: Damaged weights.
        """
        path = Path(self.source) / _WEIGHTS if Path(self.source).is_dir() else Path(self.source)
        make = _package("models.imagebind_model").imagebind_huge
        if not path.is_file():
            published: nn.Module = make(pretrained=True)
            return published.to(dtype).eval()
        encoder: nn.Module = make(pretrained=False)
        try:
            encoder.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch has many words for a damaged file
            raise CheckpointError(
                f"ImageBind's weights cannot be loaded: {error}", where=str(path), fix="download the file again"
            ) from error
        return encoder.to(dtype).eval()

    def encode(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``[N, 1, D]``."""
        kinds = [kind for kind in ("vision", "audio", "text") if kind in inputs]
        weight = next(encoder.parameters())
        found = encoder({kind: inputs[kind] if kind == "text" else inputs[kind].to(weight.dtype) for kind in kinds})
        order = torch.cat([inputs[f"{kind}_places"] for kind in kinds])
        values = torch.cat([found[kind] for kind in kinds])  # [N, D], kind by kind
        return values[order.argsort()].unsqueeze(1), None, None

    def save_source(self, encoder: nn.Module, folder: str) -> None:
        """Write the weights in the form in which they are published."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(encoder.state_dict(), Path(folder) / _WEIGHTS)
        (Path(folder) / "config.json").write_text(f'{{"model_type": "{self.name}"}}\n', encoding="utf-8")


def _package(module: str) -> Any:
    if find_spec("imagebind") is None:
        raise NotPossibleError(
            "ImageBind's encoder is not installed. Its licence allows no commercial use.",
            fix="pip install git+https://github.com/facebookresearch/ImageBind",
        )
    return import_module(f"imagebind.{module}")


@contextmanager
def _on_disk(item: Any, where: str) -> Iterator[Path]:
    """A file of a known ending: the item itself, or its bytes for as long as they are needed."""
    with open_file(item, "item for ImageBind", forms=_FORMS) as file:
        if isinstance(item, (str, Path)) and not str(item).startswith("data:"):
            if Path(item).suffix.lower() not in (*_SOUNDS, *_PICTURES):
                raise MediaError(
                    f"'{item}' is neither a picture nor a sound by its ending.",
                    where=where,
                    fix=f"use one of {', '.join((*_PICTURES, *_SOUNDS))}",
                )
            yield Path(item)
            return
        content = file.read()
    ending = ".png" if content.startswith(_HEADS) else ".wav"
    with tempfile.TemporaryDirectory(prefix="mmtune-imagebind-") as folder:
        path = Path(folder) / f"item{ending}"
        path.write_bytes(content)
        yield path
