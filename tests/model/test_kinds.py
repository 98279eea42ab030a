"""Media go to the modality that takes them, whatever the data call them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mmtune.core.errors import DataError
from mmtune.data.sample import Media, conversation
from mmtune.modalities import MODALITIES
from mmtune.model.kinds import keys_of, modality_of, with_own_names


def having(*names: str) -> dict[str, Any]:
    return {name: MODALITIES.load(name) for name in names}


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        ("audio", ("image", "audio"), "audio"),
        ("audio", ("audio_whisper",), "audio_whisper"),
        ("audio", ("audio_whisper", "audio_clap"), None),
        ("audio", ("audio", "audio_clap"), "audio"),
        ("audio_whisper", ("audio",), "audio"),
        ("audio_whisper", ("audio_clap",), None),
        ("video", ("image", "video_xclip"), "video_xclip"),
        ("document", ("document_gte",), "document_gte"),
        ("image", ("imagebind",), "imagebind"),
        ("image", ("image", "imagebind"), "image"),
        ("audio", ("image",), None),
    ],
)
def test_which_modality_reads_a_kind(kind: str, names: tuple[str, ...], expected: str | None) -> None:
    assert modality_of(kind, having(*names)) == expected


def test_keys_of_rows() -> None:
    keys = keys_of(having("audio_whisper", "audio_clap", "image"))
    assert (keys["speech_audios"], keys["sounds"], keys["images"], keys["image"]) == (
        "audio_whisper", "audio_clap", "image", "image",
    )  # fmt: skip
    assert "audios" not in keys
    elsewhere = {"series": SimpleNamespace(data_key="numbers", takes=())}
    assert keys_of(elsewhere) == {"numbers": "series"}


def test_samples_get_the_names_of_the_model() -> None:
    sample = conversation("Hm?", "Yes.", media={"audio": ["a.wav"], "image": ["a.png"]})
    named = with_own_names(sample, having("audio_clap", "image"))
    assert named.media == (Media("audio_clap", "a.wav"), Media("image", "a.png"))
    same = having("audio", "image")
    assert with_own_names(sample, same) is sample
    with pytest.raises(DataError, match="which this model does not take") as error:
        with_own_names(sample, having("image"))
    assert "image" in str(error.value.fix)
    with pytest.raises(DataError, match="audio_whisper and audio_clap") as error:
        with_own_names(sample, having("audio_whisper", "audio_clap", "image"))
    assert "speech_audios, sounds" in str(error.value.fix)
