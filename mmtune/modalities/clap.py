"""Sounds through CLAP: one vector of unit length for each ten seconds, or for the whole sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor, PreTrainedConfig

from mmtune.core.config import parse_settings
from mmtune.core.errors import UsageError
from mmtune.modalities.audio import AudioModality, AudioSettings, unknown_encoder
from mmtune.modalities.pretrained import empty, load_weights, read_config, read_part
from mmtune.modalities.waveform import Samples


class ClapSettings(AudioSettings):
    """How a sound becomes features."""

    overlong: Literal["windows", "cut", "error", "fusion"] = "windows"  # type: ignore[assignment]
    seed: int = 0  # fusion: of the three crops, which CLAP draws


class ClapAudio(AudioModality):
    """Sounds through CLAP's audio tower and projection, normalised to length 1.

    ``overlong: fusion`` hands a long sound to CLAP's own preparation, which shrinks it and adds three crops. CLAP draws
    them with numpy's global generator; here it is seeded for the length of the call and put back, so that a
    sound always gives the same features.

    Source:
        CLAP (arXiv 2211.06687); multi_token's ``audio_clap``.
    """

    model_types: ClassVar[tuple[str, ...]] = ("clap", "clap_audio_model")
    Settings: ClassVar[type[ClapSettings]] = ClapSettings
    settings: ClapSettings  # type: ignore[assignment]

    def __init__(
        self, source: str, revision: str | None, settings: ClapSettings, encoder: PreTrainedConfig, extractor: Any
    ) -> None:
        self.source, self.revision, self.settings = source, revision, settings
        self.encoder_config, self.extractor = encoder, extractor
        self.width = int(encoder.projection_dim)
        self.window_positions = self.num_positions = 1
        if settings.overlong == "fusion" and not encoder.enable_fusion:
            raise UsageError(
                f"{source} was trained without fusion.", where="settings.overlong", fix="use windows, cut or error"
            )

    @classmethod
    def from_config(
        cls, source: str, revision: str | None, settings: Mapping[str, Any], found: PreTrainedConfig
    ) -> ClapAudio:
        """The modality of an encoder whose configuration has been read."""
        parsed = parse_settings(cls.Settings, settings, where=f"encoders.{cls.name}.settings")
        extractor = read_part(ClapFeatureExtractor.from_pretrained, source, revision, "preparation of sounds")
        return cls(source, revision, parsed, getattr(found, "audio_config", found), extractor)

    @property
    def window(self) -> int:
        """Samples of one window, 10 s in all published models."""
        return int(self.extractor.nb_max_samples)

    def _cut(self, samples: Samples, where: str) -> list[Samples]:
        return [samples] if self.settings.overlong == "fusion" else super()._cut(samples, where)

    def prepare(self, window: Samples) -> dict[str, Tensor]:
        """``input_features`` [1, 1 or 4, frames, mels] and ``is_longer`` [1, 1], prepared by itself as published."""
        with _seeded(self.settings.seed):
            found = self.extractor(window, sampling_rate=self.rate, return_tensors="pt")
        return {"input_features": found["input_features"].float(), "is_longer": found["is_longer"]}

    def load_encoder(self, dtype: torch.dtype) -> nn.Module:
        """Load the audio tower and its projection, also from a checkpoint that holds text weights beside them."""
        return load_weights(
            ClapAudioModelWithProjection,
            self.source,
            self.revision,
            "audio encoder",
            dtype=dtype,
            config=self.encoder_config,
        )

    def empty_encoder(self, dtype: torch.dtype) -> nn.Module:
        """The audio tower by its configuration alone."""
        return empty(ClapAudioModelWithProjection, self.encoder_config, dtype)

    def read_windows(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """``[C, 1, D]``."""
        features = inputs["input_features"].to(next(encoder.parameters()).dtype)
        embeds: Tensor = encoder(features, is_longer=inputs["is_longer"]).audio_embeds
        return nn.functional.normalize(embeds, dim=-1).unsqueeze(1)


class PublishedClapSettings(ClapSettings):
    """multi_token's: one vector of the whole sound."""

    overlong: Literal["windows", "cut", "error", "fusion"] = "fusion"  # type: ignore[assignment]


class PublishedClap(ClapAudio):
    """``audio_clap`` of published multi_token checkpoints: ``<sound>``, one vector a sound."""

    name = "audio_clap"
    marker = "<sound>"
    data_key = "sounds"
    Settings = PublishedClapSettings

    @classmethod
    def from_source(
        cls, source: str, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> ClapAudio:
        """Read the configuration of a CLAP; one without fusion cuts long sounds unless told otherwise.

        Raises:
            CheckpointError, NotPossibleError, RecipeError: As :meth:`AudioModality.from_source`.
        """
        found = read_config(source, revision, "audio encoder")
        if found.model_type not in cls.model_types:
            raise unknown_encoder(source, found, cls.model_types)
        fused = bool(getattr(found, "audio_config", found).enable_fusion)
        given = {**({} if fused else {"overlong": "cut"}), **(settings or {})}
        return cls.from_config(source, revision, given, found)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, and put it back."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
