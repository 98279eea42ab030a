"""Videos through X-CLIP: one vector of unit length for eight frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig, XCLIPModel

# The same class is public, but its public name asks for torchvision in transformers 5.17.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from mmtune.core import config
from mmtune.modalities.audio import unknown_encoder
from mmtune.modalities.frames import Sampling, prepared_frames
from mmtune.modalities.pretrained import empty, load_weights, read_config, read_part
from mmtune.modalities.video import VideoModality, VideoSettings


class XClipVideo(VideoModality):
    """Videos through X-CLIP's video half, normalised to length 1. The text half has no part in it.

    Source:
        X-CLIP (arXiv 2208.02816); multi_token's ``video_xclip``.
    """

    model_types: ClassVar[tuple[str, ...]] = ("xclip",)
    Settings: ClassVar[type[VideoSettings]] = VideoSettings

    def __init__(
        self, source: str, revision: str | None, settings: VideoSettings, encoder: PreTrainedConfig, processor: Any
    ) -> None:
        self.source, self.revision, self.settings = source, revision, settings
        self.encoder_config, self.processor = encoder, processor
        self.width = int(encoder.projection_dim)
        self.num_frames = int(encoder.vision_config.num_frames)
        self.num_positions = 1

    @classmethod
    def from_config(
        cls, source: str, revision: str | None, settings: Mapping[str, Any], found: PreTrainedConfig
    ) -> XClipVideo:
        """The modality of an encoder whose configuration has been read."""
        parsed = config.parse_settings(cls.Settings, settings, where=f"encoders.{cls.name}.settings")
        processor = read_part(
            AutoImageProcessor.from_pretrained, source, revision, "preparation of frames", backend="pil"
        )
        return cls(source, revision, parsed, found, processor)

    def prepare(self, frames: list[Image.Image]) -> Tensor:
        """All frames through X-CLIP's own preparation."""
        pixels: Tensor = prepared_frames(self.processor, frames)
        return pixels

    def preparation(self) -> Any:
        """X-CLIP's own preparation of frames, and their number."""
        return [self.processor.to_dict(), self.num_frames]

    def load_encoder(self, dtype: torch.dtype) -> nn.Module:
        """Load the whole model: transformers has no class for its video half."""
        return load_weights(XCLIPModel, self.source, self.revision, "video encoder", dtype=dtype)

    def empty_encoder(self, dtype: torch.dtype) -> nn.Module:
        """The model by its configuration alone."""
        return empty(XCLIPModel, self.encoder_config, dtype)

    def encode(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``[N, 1, D]``."""
        pixels = inputs["pixel_values"].to(next(encoder.parameters()).dtype)  # [N, F, 3, H, W]
        pooled: Tensor = encoder.get_video_features(pixels).pooler_output  # type: ignore[operator]
        return nn.functional.normalize(pooled, dim=-1).unsqueeze(1), None, None

    def save_source(self, encoder: nn.Module, folder: str) -> None:
        """Write weights, configuration and preparation."""
        encoder.save_pretrained(folder)  # type: ignore[operator]
        self.processor.save_pretrained(folder)


class PublishedXClipSettings(VideoSettings):
    """multi_token's: neighbouring frames, at a place that is seeded here."""

    sampling: Sampling = "consecutive"


class PublishedXClip(XClipVideo):
    """``video_xclip`` of published multi_token checkpoints: eight neighbouring frames."""

    name = "video_xclip"
    Settings = PublishedXClipSettings

    @classmethod
    def from_source(
        cls, source: str, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> XClipVideo:
        """Read the configuration of an X-CLIP.

        Raises:
            CheckpointError, NotPossibleError, RecipeError: As :meth:`VideoModality.from_source`.
        """
        found = read_config(source, revision, "video encoder")
        if found.model_type not in cls.model_types:
            raise unknown_encoder(source, found, cls.model_types)
        return cls.from_config(source, revision, settings or {}, found)
