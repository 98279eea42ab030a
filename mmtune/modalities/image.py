"""Pictures through a CLIP-, SigLIP- or DINOv2-like encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

# The same class is public, but its public name asks for torchvision in transformers 5.17.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from mmtune.core import config
from mmtune.core.errors import CheckpointError, MediaError, NotPossibleError, UsageError
from mmtune.hosts.blocks import only_first
from mmtune.hosts.host import Host
from mmtune.modalities.base import Modality
from mmtune.modalities.pictures import open_picture
from mmtune.modalities.pretrained import DAMAGE
from mmtune.modalities.tiles import BREAK, PADDING, PINPOINTS, cut_tiles, lay_out

# model_type of an encoder -> whether position 0 is a class token.
_CLASS_TOKEN = {
    "clip_vision_model": True,
    "siglip_vision_model": False,
    "dinov2": True,
}


_PLACELESS = ("pool", "taps")  # kinds of positions that are no places in the picture
_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class ImageSettings(config.Settings):
    """How a picture becomes features."""

    layer: int = -2  # index into hidden_states; -1 is the last block's output, before any final norm
    select: Literal["patch", "cls_patch", "pool", "taps"] = "patch"  # see ImageModality.encode
    tap_every: int = Field(default=4, ge=1)  # taps: after every so many blocks, or after the last one of fewer
    aspect: Literal["square", "stretch", "pad", "anyres"] = "pad"  # crop, deform or pad to a square, or cut tiles
    statistics: Literal["encoder", "imagenet"] = "encoder"  # what pixels are normalised by
    pinpoints: tuple[tuple[int, int], ...] = PINPOINTS  # anyres: (width, height) of the allowed canvases
    merge: Literal["flat", "spatial", "spatial_unpad"] = "spatial_unpad"  # anyres: how tiles become rows


class ImageModality(Modality):
    """Pictures: decoded, squared as the settings say, and read from one layer of the encoder.

    Source:
        LLaVA-1.5 (arXiv 2310.03744): CLIP ViT-L/14-336, last but one layer, patches only, padded to a square.
    """

    name = "image"
    marker = "<image>"
    data_key = "images"
    settings: ImageSettings

    def __init__(
        self, source: str, revision: str | None, settings: ImageSettings, encoder: PreTrainedConfig, processor: Any
    ) -> None:
        self.source = source
        self.revision = revision
        self.settings = settings
        self.encoder_config = encoder
        self.processor = processor
        self.class_token = _has_class_token(encoder, source)
        self._options: dict[str, Any] = {}  # of the processor's call
        if settings.statistics == "imagenet":
            self._options |= {"image_mean": _IMAGENET_MEAN, "image_std": _IMAGENET_STD}
        if settings.aspect == "stretch":  # done before, whatever sizes the processor would go through
            self._options |= {"do_resize": False, "do_center_crop": False}
        if settings.select == "cls_patch" and not self.class_token:
            raise UsageError(f"{source} has no class token.", where="settings.select", fix="use select: patch")
        if settings.select in _PLACELESS and settings.aspect == "anyres":
            raise UsageError(
                f"Tiles are laid out by position; a picture read by '{settings.select}' has none.",
                where="settings.select",
                fix=f"use aspect: pad or square with select: {settings.select}",
            )
        self.side = encoder.image_size // encoder.patch_size
        self.width = encoder.hidden_size
        self.num_blocks = encoder.num_hidden_layers
        self.num_positions = self._count_positions()
        self.has_line_breaks = settings.aspect == "anyres" and settings.merge == "spatial_unpad"
        depth = encoder.num_hidden_layers
        if not -depth - 1 <= settings.layer <= depth:
            raise UsageError(
                f"Layer {settings.layer} is not among the {depth + 1} hidden states of {source}.",
                where="settings.layer",
                fix=f"use a value from {-depth - 1} to {depth}",
            )

    def _count_positions(self) -> int:
        if self.settings.select == "taps":
            return len(self._taps())
        return 1 if self.settings.select == "pool" else self.side**2 + int(self.settings.select == "cls_patch")

    def _taps(self) -> list[int]:
        """Indices into hidden_states, counted from the output of block 1."""
        depth, every = self.encoder_config.num_hidden_layers, self.settings.tap_every
        return list(range(every, depth + 1, every)) or [depth]

    def _read(self) -> list[int]:
        """Indices of the hidden states that are read, 0 for what enters block 1; deeper blocks need not run."""
        if self.settings.select == "taps":
            return self._taps()
        return [self.settings.layer % (self.encoder_config.num_hidden_layers + 1)]

    @classmethod
    def from_source(
        cls, source: str, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> ImageModality:
        """Read the encoder's configuration and picture preparation.

        Raises:
            CheckpointError: Nothing readable at ``source``.
            RecipeError: Unknown or invalid settings.
        """
        parsed = config.parse_settings(ImageSettings, settings or {}, where="encoders.image.settings")
        try:
            found = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
            processor = AutoImageProcessor.from_pretrained(
                source, revision=revision, backend="pil", trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"No vision encoder can be read from '{source}': {_first_line(error)}",
                where=source,
                fix="give a folder or hub id with config.json and preprocessor_config.json",
            ) from error
        return cls(source, revision, parsed, getattr(found, "vision_config", found), processor)

    def load(self, item: Any) -> dict[str, Tensor]:
        """Open and prepare one picture.

        Returns:
            ``pixel_values`` [3, H, W], or with ``anyres`` [tiles, 3, H, W] and ``layout`` [L].
        """
        image = open_picture(item)
        if self.settings.aspect == "anyres":
            tiles, grid = cut_tiles(image, self.settings.pinpoints, self.encoder_config.image_size)
            layout = lay_out(
                image.size, grid, self.side, self.settings.merge, class_token=self.settings.select == "cls_patch"
            )
            return {"pixel_values": self._prepare(tiles), "layout": layout}
        return {"pixel_values": self._prepare([self._squared(image)])[0]}

    def load_all(self, items: Sequence[Any]) -> list[dict[str, Tensor] | MediaError]:
        """All pictures through one call of the preparation; tiles, whose number differs, picture by picture."""
        if self.settings.aspect == "anyres":
            return super().load_all(items)
        opened = [_opened_or_error(item) for item in items]
        squared = [self._squared(picture) for picture in opened if not isinstance(picture, MediaError)]
        pixels = iter(self._prepare(squared) if squared else ())
        return [
            picture if isinstance(picture, MediaError) else {"pixel_values": next(pixels).clone()} for picture in opened
        ]

    def _squared(self, image: Image.Image) -> Image.Image:
        """The picture in the shape that the settings ask for, before the encoder's own preparation."""
        if self.settings.aspect == "pad":
            means = self._options.get("image_mean", self.processor.image_mean)
            return pad_to_square(image, tuple(int(255 * mean) for mean in means))
        if self.settings.aspect == "stretch":
            side = self.encoder_config.image_size
            return image.resize((side, side), Image.Resampling.BICUBIC)
        return image

    def _prepare(self, images: Sequence[Image.Image]) -> Tensor:
        pixels: Tensor = self.processor(images=list(images), return_tensors="pt", **self._options)["pixel_values"]
        return pixels

    def preparation(self) -> Any:
        """The encoder's own preparation of pictures and its sizes."""
        return [self.processor.to_dict(), self.encoder_config.to_dict()]

    def blank(self) -> dict[str, Tensor]:
        """A black picture."""
        return self.load(Image.new("RGB", (self.side, self.side)))

    def positions(self, raw: Mapping[str, Tensor]) -> int:
        """P of one picture; with ``anyres`` it depends on the picture."""
        return len(raw["layout"]) if "layout" in raw else self.num_positions

    def collate(self, raws: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Stack pictures; tiles of all pictures follow one another and their layouts point into them."""
        if "layout" not in raws[0]:
            return super().collate(raws)
        longest = max(len(raw["layout"]) for raw in raws)
        layouts, offset = [], 0
        for raw in raws:
            layout = torch.where(raw["layout"] >= 0, raw["layout"] + offset, raw["layout"])
            layouts.append(nn.functional.pad(layout, (0, longest - len(layout)), value=PADDING))
            offset += len(raw["pixel_values"]) * self.num_positions
        return {"pixel_values": torch.cat([raw["pixel_values"] for raw in raws]), "layout": torch.stack(layouts)}

    def load_encoder(self, dtype: torch.dtype) -> nn.Module:
        """Load the vision tower alone, also from a checkpoint that holds text weights beside it."""
        try:
            encoder: nn.Module = AutoModel.from_pretrained(
                self.source, config=self.encoder_config, revision=self.revision, dtype=dtype, trust_remote_code=False
            )
        except DAMAGE as error:
            raise CheckpointError(
                f"The vision encoder '{self.source}' cannot be loaded: {_first_line(error)}", where=self.source
            ) from error
        return encoder.eval()

    def empty_encoder(self, dtype: torch.dtype) -> nn.Module:
        """The vision tower by its configuration alone."""
        with torch.device("meta"):
            encoder: nn.Module = AutoModel.from_config(self.encoder_config, dtype=dtype, trust_remote_code=False)
        return encoder.eval()

    def encode(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Read one hidden layer, ``[N, P, D]``, with mask and line breaks for tiles; or something without places.

        ``pool`` is the encoder's own pooled output, ``[N, 1, D]``: CLIP's and DINOv2's class token after the last norm,
        SigLIP's attention head. ``taps`` are the class tokens after every ``tap_every``-th block without any norm,
        ``[N, L, D]``; for an encoder without one, the means over its patches. Blocks behind the last one that is read
        do not run.
        """
        weight = next(encoder.parameters())
        pixels = inputs["pixel_values"].to(weight.dtype)
        if self.settings.select == "pool":
            return encoder(pixels).pooler_output.unsqueeze(1), None, None
        wanted = self._read()
        with only_first(Host(cast(PreTrainedModel, encoder)), max(wanted)):
            states = encoder(pixels, output_hidden_states=wanted).hidden_states  # older transformers keep all of them
        if self.settings.select == "taps":
            taps = [states[index][:, 0] if self.class_token else states[index].mean(1) for index in wanted]
            return torch.stack(taps, dim=1), None, None
        hidden: Tensor = states[wanted[0]]
        if self.class_token and self.settings.select == "patch":
            hidden = hidden[:, 1:]
        if "layout" not in inputs:
            return hidden, None, None
        layout = inputs["layout"]  # [N, L]
        values = hidden.flatten(0, 1)[layout.clamp(min=0)]  # [N, L, D]
        return values, layout != PADDING, layout == BREAK

    def save_source(self, encoder: nn.Module, folder: str) -> None:
        """Write weights, configuration and picture preparation."""
        encoder.save_pretrained(folder)  # type: ignore[operator]
        self.processor.save_pretrained(folder)


def pad_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """Centre a picture on a square of one colour, as LLaVA-1.5 does."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    canvas = Image.new("RGB", (side, side), color)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _opened_or_error(item: Any) -> Image.Image | MediaError:
    try:
        return open_picture(item)
    except MediaError as error:
        return error


def _has_class_token(encoder: PreTrainedConfig, source: str) -> bool:
    if encoder.model_type not in _CLASS_TOKEN:
        raise NotPossibleError(
            f"'{source}' is a '{encoder.model_type}', which is no vision encoder known here.",
            fix=f"use one of these kinds: {', '.join(sorted(_CLASS_TOKEN))}",
        )
    return _CLASS_TOKEN[encoder.model_type]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
