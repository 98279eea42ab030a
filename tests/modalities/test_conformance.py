"""Every modality keeps what the rest of the package relies on, alone and with a method that reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmtune.modalities import MODALITIES
from mmtune.testing import check_modality
from mmtune.testing.encoders import TINY_ENCODERS, save_tiny_clap, save_tiny_xclip

EXPECTED = {"audio_clap": [1], "audio_whisper": [1], "document": [1, 2], "document_gte": [1], "embedding": [1, 2]}


@pytest.mark.parametrize("name", sorted(TINY_ENCODERS))
def test_each_modality(name: str) -> None:
    report = check_modality(name)
    announced = next(finding for finding in report.findings if finding.property == "positions")
    if name in EXPECTED:
        assert announced.note.startswith(str(EXPECTED[name]))


def test_sounds_of_several_windows_and_videos_through_a_video_encoder(tmp_path: Path) -> None:
    check_modality("audio", source=save_tiny_clap(tmp_path / "clap"))
    check_modality("audio", settings={"features": "decoder"})
    check_modality("audio", settings={"pool": 10})
    check_modality("video", source=save_tiny_xclip(tmp_path / "xclip"))
    check_modality("video", settings={"frames": 3, "pool": "frame"})


def test_every_registered_modality_is_checked() -> None:
    elsewhere = {"image", "imagebind"}  # tests/testing and test_imagebind
    known = {name for name in MODALITIES.names() if MODALITIES.load(name).__module__.startswith("mmtune.modalities")}
    assert known - elsewhere == set(TINY_ENCODERS)


@pytest.mark.parametrize("name", sorted(TINY_ENCODERS))
def test_empty_encoders_have_the_sizes_of_real_ones(name: str, tmp_path: Path) -> None:
    modality = MODALITIES.load(name).from_source(TINY_ENCODERS[name].save(tmp_path))
    real = {key: value.shape for key, value in modality.load_encoder(torch.float32).named_parameters()}
    found = dict(modality.empty_encoder(torch.float32).named_parameters())
    assert {key: value.shape for key, value in found.items()} == real
    assert all(value.is_meta for value in found.values())
