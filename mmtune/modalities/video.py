"""Videos: some of their frames, through a video encoder or one by one through an image encoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mmtune.core import config
from mmtune.modalities.base import Modality
from mmtune.modalities.frames import Sampling, open_frames
from mmtune.modalities.image import ImageModality
from mmtune.modalities.pretrained import read_config

_SIDE = 32  # of a blank frame


class VideoSettings(config.Settings):
    """What every video encoder needs to be told."""

    sampling: Sampling = "uniform"  # over the whole video, or neighbours at a place drawn by the seed
    seed: int = 0
    max_seconds: float = Field(default=3600.0, gt=0)  # longest video that is read at all


class VideoModality(Modality):
    """Videos through X-CLIP, or frame by frame through an image encoder; the source's configuration tells which."""

    name = "video"
    marker = "<video>"
    data_key = "videos"
    takes: ClassVar[tuple[str, ...]] = ("video",)
    settings: VideoSettings
    num_frames: int

    @classmethod
    def from_source(
        cls, source: str, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> VideoModality:
        """Read the configuration of an encoder and choose the kind of modality that reads it.

        Raises:
            CheckpointError: Nothing readable at ``source``.
            NotPossibleError: An encoder of another kind.
            RecipeError: Unknown or invalid settings.
        """
        from mmtune.modalities.xclip import XClipVideo

        found = read_config(source, revision, "video encoder")
        if found.model_type in XClipVideo.model_types:
            return XClipVideo.from_config(source, revision, settings or {}, found)
        return FrameVideo.from_config(source, revision, settings or {}, found)

    def load(self, item: Any) -> dict[str, Tensor]:
        """Open one video and prepare its frames.

        Returns:
            ``pixel_values`` [F, 3, H, W].
        """
        given = self.settings
        frames = open_frames(item, self.num_frames, given.sampling, given.seed, max_seconds=given.max_seconds)
        return {"pixel_values": self.prepare(frames)}

    def blank(self) -> dict[str, Tensor]:
        """Black frames."""
        return {"pixel_values": self.prepare([Image.new("RGB", (_SIDE, _SIDE))] * self.num_frames)}

    @abstractmethod
    def prepare(self, frames: list[Image.Image]) -> Tensor:
        """Frames as the encoder wants them, ``[F, 3, H, W]``."""


class FrameSettings(VideoSettings):
    """How frames become features; see the image modality for what the last three mean."""

    frames: int = Field(default=8, ge=1)  # that are looked at
    pool: Literal["none", "frame"] = "none"  # keep all positions, or the mean of each frame
    layer: int = -2
    select: Literal["patch", "cls_patch", "pool"] = "patch"
    aspect: Literal["square", "pad"] = "pad"


class FrameVideo(VideoModality):
    """Videos frame by frame through a CLIP-, SigLIP- or DINOv2-like encoder, their positions one after another."""

    settings: FrameSettings

    def __init__(self, settings: FrameSettings, picture: ImageModality) -> None:
        self.source, self.revision, self.settings = picture.source, picture.revision, settings
        self.picture = picture
        self.width = picture.width
        self.num_frames = settings.frames
        self.num_positions = settings.frames * (1 if settings.pool == "frame" else picture.num_positions)

    @classmethod
    def from_config(
        cls, source: str, revision: str | None, settings: Mapping[str, Any], found: PreTrainedConfig
    ) -> FrameVideo:
        """The modality of an encoder whose configuration has been read."""
        parsed = config.parse_settings(FrameSettings, settings, where=f"encoders.{cls.name}.settings")
        wanted = {"layer": parsed.layer, "select": parsed.select, "aspect": parsed.aspect}
        return cls(parsed, ImageModality.from_source(source, revision=revision, settings=wanted))

    def prepare(self, frames: list[Image.Image]) -> Tensor:
        """Each frame as a picture of its own."""
        return torch.stack([self.picture.load(frame)["pixel_values"] for frame in frames])

    def preparation(self) -> Any:
        """That of a picture."""
        return self.picture.preparation()

    def load_encoder(self, dtype: torch.dtype) -> nn.Module:
        """The image encoder."""
        return self.picture.load_encoder(dtype)

    def empty_encoder(self, dtype: torch.dtype) -> nn.Module:
        """The image encoder by its configuration alone."""
        return self.picture.empty_encoder(dtype)

    def encode(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """All frames of all videos at once: ``[N, F * P, D]``, or ``[N, F, D]`` pooled."""
        pixels = inputs["pixel_values"]  # [N, F, 3, H, W]
        values, _, _ = self.picture.encode(encoder, {"pixel_values": pixels.flatten(0, 1)})  # [N * F, P, D]
        if self.settings.pool == "frame":
            values = values.mean(1, keepdim=True)
        return values.unflatten(0, pixels.shape[:2]).flatten(1, 2), None, None

    def save_source(self, encoder: nn.Module, folder: str) -> None:
        """The image encoder and its preparation."""
        self.picture.save_source(encoder, folder)
