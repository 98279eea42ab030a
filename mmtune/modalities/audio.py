"""Sounds: opened, cut into the windows that the encoder reads, and put together again. The encoder decides the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mmtune.core import config
from mmtune.core.errors import MediaError, NotPossibleError
from mmtune.modalities.base import Modality
from mmtune.modalities.opening import place_of
from mmtune.modalities.pretrained import read_config
from mmtune.modalities.waveform import Samples, open_sound
from mmtune.modalities.windows import lay_out_windows, put_together


class AudioSettings(config.Settings):
    """What every audio encoder needs to be told."""

    overlong: Literal["windows", "cut", "error"] = "windows"  # sounds longer than the encoder's window
    max_seconds: float = Field(default=600.0, gt=0)  # longest sound that is read at all


class AudioModality(Modality):
    """Sounds through Whisper or CLAP; which one, the source's configuration tells.

    Sounds longer than the encoder's window are read in several windows, one after another, unless the settings say to
    cut or to refuse them. Nothing is drawn by chance but what CLAP's ``overlong: fusion`` asks for, and that is seeded.
    """

    name = "audio"
    marker = "<audio>"
    data_key = "audios"
    takes = ("audio",)
    settings: AudioSettings
    extractor: Any  # the encoder's own feature extractor
    window_positions: int  # of one window

    @classmethod
    def from_source(
        cls, source: str, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> AudioModality:
        """Read the configuration of an encoder and choose the kind of modality that reads it.

        Raises:
            CheckpointError: Nothing readable at ``source``.
            NotPossibleError: No audio encoder that is known here.
            RecipeError: Unknown or invalid settings.
        """
        from mmtune.modalities.clap import ClapAudio
        from mmtune.modalities.whisper import WhisperAudio

        found = read_config(source, revision, "audio encoder")
        for kind in (WhisperAudio, ClapAudio):
            if found.model_type in kind.model_types:
                return kind.from_config(source, revision, settings or {}, found)
        raise unknown_encoder(source, found, [*WhisperAudio.model_types, *ClapAudio.model_types])

    @property
    def rate(self) -> int:
        """Samples a second that the encoder wants."""
        return int(self.extractor.sampling_rate)

    @property
    @abstractmethod
    def window(self) -> int:
        """Samples of one window."""

    @abstractmethod
    def prepare(self, window: Samples) -> dict[str, Tensor]:
        """What the encoder reads of at most one window of samples, with a first axis of 1."""

    def real_positions(self, samples: int) -> int:
        """Positions of a window that stand for real samples; the rest are padding."""
        return self.window_positions

    def load(self, item: Any) -> dict[str, Tensor]:
        """Open one sound and prepare its windows.

        Returns:
            The encoder's inputs with the windows C as first axis, and ``kept`` [C], the real positions of each.
        """
        samples = open_sound(item, self.rate, max_seconds=self.settings.max_seconds)
        windows = self._cut(samples, place_of(item, "sound"))
        prepared = [self.prepare(window) for window in windows]
        raw = {key: torch.cat([one[key] for one in prepared]) for key in prepared[0]}
        return {**raw, "kept": torch.tensor([self.real_positions(len(window)) for window in windows])}

    def _cut(self, samples: Samples, where: str) -> list[Samples]:
        if len(samples) <= self.window:
            return [samples]
        if self.settings.overlong == "error":
            raise MediaError(
                f"The sound is {len(samples) / self.rate:.1f} s long, the encoder reads {self.window / self.rate:g} s.",
                where=where,
                fix="cut it, or set settings.overlong of the encoder to windows or cut",
            )
        if self.settings.overlong == "cut":
            return [samples[: self.window]]
        return [samples[start : start + self.window] for start in range(0, len(samples), self.window)]

    def blank(self) -> dict[str, Tensor]:
        """A second of silence."""
        return self.load({"array": [0.0] * self.rate, "sampling_rate": self.rate})

    def preparation(self) -> Any:
        """The encoder's own preparation of sounds."""
        return self.extractor.to_dict()

    def positions(self, raw: Mapping[str, Tensor]) -> int:
        """P of one sound."""
        return int(raw["kept"].sum())

    def collate(self, raws: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The windows of all sounds follow one another; ``layout`` [N, L] puts them together."""
        inputs = {key: torch.cat([raw[key] for raw in raws]) for key in raws[0] if key != "kept"}
        return {**inputs, "layout": lay_out_windows([raw["kept"] for raw in raws], self.window_positions)}

    def encode(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Features of all sounds, ``[N, P, D]``, with their mask."""
        values, mask = put_together(self.read_windows(encoder, inputs), inputs["layout"])
        return values, mask, None

    @abstractmethod
    def read_windows(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features of all windows, ``[C, p, D]``."""

    def save_source(self, encoder: nn.Module, folder: str) -> None:
        """Write weights, configuration and preparation."""
        encoder.save_pretrained(folder)  # type: ignore[operator]
        self.extractor.save_pretrained(folder)


def unknown_encoder(source: str, found: PreTrainedConfig, known: Sequence[str]) -> NotPossibleError:
    """The error for an encoder of a kind that a modality cannot read."""
    return NotPossibleError(
        f"'{source}' is a '{found.model_type}', which this modality cannot read.",
        where=source,
        fix=f"use one of these kinds: {', '.join(sorted(known))}",
    )
