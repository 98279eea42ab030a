"""Speech through Whisper: the positions of its encoder, or the one vector that published multi_token models read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedConfig, WhisperFeatureExtractor, WhisperModel

from mmtune.core.config import parse_settings
from mmtune.core.errors import CheckpointError, UsageError
from mmtune.modalities.audio import AudioModality, AudioSettings, unknown_encoder
from mmtune.modalities.pretrained import empty, load_weights, read_config, read_part
from mmtune.modalities.waveform import Samples


class WhisperSettings(AudioSettings):
    """How speech becomes features."""

    features: Literal["encoder", "decoder"] = "encoder"  # a position for each 20 ms, or the decoder's first state
    pool: int = Field(default=1, ge=1)  # encoder: positions that are averaged into one


class WhisperAudio(AudioModality):
    """Speech through Whisper.

    ``features: encoder`` gives the encoder's last layer, ``pool`` positions averaged into one, without those that stand
    for the padding of a short clip. ``features: decoder`` gives one vector a window: what the decoder says to its start
    token alone.

    Source:
        Whisper (arXiv 2212.04356); multi_token's ``audio_whisper`` for the decoder's state.
    """

    model_types: ClassVar[tuple[str, ...]] = ("whisper",)
    Settings: ClassVar[type[WhisperSettings]] = WhisperSettings
    settings: WhisperSettings

    def __init__(
        self, source: str, revision: str | None, settings: WhisperSettings, encoder: PreTrainedConfig, extractor: Any
    ) -> None:
        self.source, self.revision, self.settings = source, revision, settings
        self.encoder_config, self.extractor = encoder, extractor
        self.width = int(encoder.d_model)
        frames = int(encoder.max_source_positions)
        if extractor.nb_max_frames != 2 * frames or extractor.feature_size != encoder.num_mel_bins:
            raise CheckpointError(
                f"The preparation gives {extractor.feature_size} x {extractor.nb_max_frames} frames, "
                f"the encoder reads {encoder.num_mel_bins} x {2 * frames}.",
                where=source,
                fix="use the preprocessor_config.json that belongs to the encoder",
            )
        if frames % settings.pool:
            raise UsageError(
                f"{frames} positions cannot be averaged in groups of {settings.pool}.",
                where="settings.pool",
                fix=f"use a divisor of {frames}",
            )
        self.window_positions = frames // settings.pool if settings.features == "encoder" else 1
        self.num_positions = self.window_positions

    @classmethod
    def from_config(
        cls, source: str, revision: str | None, settings: Mapping[str, Any], found: PreTrainedConfig
    ) -> WhisperAudio:
        """The modality of an encoder whose configuration has been read."""
        parsed = parse_settings(cls.Settings, settings, where=f"encoders.{cls.name}.settings")
        extractor = read_part(WhisperFeatureExtractor.from_pretrained, source, revision, "preparation of sounds")
        return cls(source, revision, parsed, found, extractor)

    @property
    def window(self) -> int:
        """Samples of one window, 30 s in all published models."""
        return int(self.extractor.n_samples)

    def prepare(self, window: Samples) -> dict[str, Tensor]:
        """``input_features`` [1, mels, frames], padded to the window."""
        found = self.extractor(window, sampling_rate=self.rate, return_tensors="pt")
        return {"input_features": found["input_features"]}

    def real_positions(self, samples: int) -> int:
        """Positions that stand for real samples, at least one."""
        if self.settings.features == "decoder":
            return 1
        each = 2 * self.extractor.hop_length * self.settings.pool  # samples of one position
        return max(1, -(-samples // each))

    def load_encoder(self, dtype: torch.dtype) -> nn.Module:
        """Load encoder and decoder, also from a checkpoint for transcription."""
        return load_weights(WhisperModel, self.source, self.revision, "audio encoder", dtype=dtype)

    def empty_encoder(self, dtype: torch.dtype) -> nn.Module:
        """Encoder and decoder by their configuration alone."""
        return empty(WhisperModel, self.encoder_config, dtype)

    def read_windows(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """``[C, p, D]``."""
        features = inputs["input_features"].to(next(encoder.parameters()).dtype)
        if self.settings.features == "decoder":
            start = torch.full((len(features), 1), self.encoder_config.decoder_start_token_id, device=features.device)
            said: Tensor = encoder(features, decoder_input_ids=start, use_cache=False).last_hidden_state
            return said
        heard: Tensor = encoder.get_encoder()(features).last_hidden_state  # type: ignore[operator]
        return heard.unflatten(1, (self.window_positions, self.settings.pool)).mean(2)


class PublishedWhisperSettings(WhisperSettings):
    """multi_token's: one vector of the first 30 s."""

    overlong: Literal["windows", "cut", "error"] = "cut"
    features: Literal["encoder", "decoder"] = "decoder"


class PublishedWhisper(WhisperAudio):
    """``audio_whisper`` of published multi_token checkpoints: ``<speech>``, one vector a clip, cut after 30 s."""

    name = "audio_whisper"
    marker = "<speech>"
    data_key = "speech_audios"
    Settings = PublishedWhisperSettings

    @classmethod
    def from_source(
        cls, source: str, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> WhisperAudio:
        """Read the configuration of a Whisper.

        Raises:
            CheckpointError, NotPossibleError, RecipeError: As :meth:`AudioModality.from_source`.
        """
        found = read_config(source, revision, "audio encoder")
        if found.model_type not in cls.model_types:
            raise unknown_encoder(source, found, cls.model_types)
        return cls.from_config(source, revision, settings or {}, found)
