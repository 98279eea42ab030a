"""Sounds: every form and format, every fault, and features that equal those of the published code."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from transformers import (
    ClapAudioModelWithProjection,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from mmtune.core.errors import CheckpointError, MediaError, MissingExtraError, NotPossibleError, RecipeError, UsageError
from mmtune.modalities import MODALITIES, waveform
from mmtune.modalities.audio import AudioModality
from mmtune.modalities.waveform import open_sound
from mmtune.testing.encoders import RATE, TINY_ENCODERS, save_tiny_bert, save_tiny_clap, save_tiny_whisper, tone

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, RATE).astype(np.float32)


def encoded(samples: np.ndarray, *, rate: int = RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def read(item: object, rate: int = RATE) -> np.ndarray:
    return open_sound(item, rate, max_seconds=60)


def test_every_form_of_an_item_is_the_same_sound(tmp_path: Path) -> None:
    content = encoded(NOISE, subtype="FLOAT")
    (tmp_path / "a.wav").write_bytes(content)
    uri = "data:audio/wav;base64," + base64.b64encode(content).decode()
    in_memory = {"array": NOISE.tolist(), "sampling_rate": RATE}
    path = tmp_path / "a.wav"
    for item in (path, str(path), content, uri, {"path": str(path)}, {"bytes": content, "path": "x"}, in_memory):
        np.testing.assert_array_equal(read(item), NOISE)


@pytest.mark.parametrize(
    ("format", "subtype", "allowed"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_U8", 1e-2),
        ("FLAC", "PCM_24", 1e-6),
        ("OGG", "VORBIS", 1.0),
        ("MP3", None, 1.0),
    ],
)
def test_formats(format: str, subtype: str | None, allowed: float) -> None:
    found = read(encoded(NOISE, format=format, subtype=subtype))
    assert abs(len(found) - len(NOISE)) < 2000
    if allowed < 1:
        assert np.abs(found - NOISE).max() <= allowed


def test_channels_are_averaged_whichever_axis_they_are() -> None:
    both = np.stack([NOISE, -0.5 * NOISE], axis=1)
    np.testing.assert_allclose(read(encoded(both, subtype="FLOAT")), 0.25 * NOISE, atol=1e-7)
    for array in (both, both.T):
        np.testing.assert_allclose(read({"array": array, "sampling_rate": RATE}), 0.25 * NOISE, atol=1e-7)


def test_resampling_is_that_of_soxr_in_high_quality() -> None:
    found = read(encoded(NOISE, rate=8000, subtype="FLOAT"))
    np.testing.assert_allclose(found, soxr.resample(NOISE, 8000, RATE), atol=1e-6)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"no sound at all" * 40, "Not a sound"),
        (encoded(NOISE)[:30], "Not a sound"),
        (truncated(encoded(NOISE)), "truncated"),
        (truncated(encoded(NOISE, format="FLAC")), "Not a sound"),
        (truncated(encoded(NOISE, format="MP3")), "truncated"),
        (encoded(NOISE[:0]), "no samples"),
        (encoded(np.array([0.0, np.nan], np.float32), subtype="FLOAT"), "not finite"),
        (encoded(np.zeros(61 * 100, np.float32), rate=100), "61 s long"),
    ],
)
def test_what_is_no_sound_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    for item in (content, path):
        with pytest.raises(MediaError, match=words) as error:
            read(item)
        assert error.value.fix
    assert error.value.where == str(path)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("no-such.wav", "No such sound"),
        (".", "A folder"),
        ("https://x.y/a.wav", "URLs"),
        (7, "int is no sound"),
        ({"array": [1.0]}, "sampling rate None"),
        ({"array": ["a"], "sampling_rate": 8}, "no numbers"),
        ({"array": [[[1.0]]], "sampling_rate": 8}, "shape"),
        ({"array": [], "sampling_rate": 8}, "no samples"),
        ({"path": None}, "NoneType"),
    ],
)
def test_what_cannot_be_opened(item: object, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        read(item)


def test_streamed_files_without_a_length_are_read() -> None:
    content = bytearray(encoded(NOISE))
    place = content.index(b"data") + 4
    content[place : place + 4] = b"\xff\xff\xff\xff"
    assert len(read(bytes(content))) == len(NOISE)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waveform, "find_spec", lambda name: None if name == "soxr" else find_spec(name))
    with pytest.raises(MissingExtraError) as error:
        read(NOISE)
    assert error.value.fix == 'pip install "mmtune[audio]"'


def features(modality: AudioModality, *items: object) -> torch.Tensor:
    encoder = modality.load_encoder(torch.float32)
    with torch.no_grad():
        values, mask, _ = modality.encode(encoder, modality.collate([modality.load(item) for item in items]))
    assert mask is not None
    return values[mask]


def test_whisper_as_published_reads_the_first_state_of_the_decoder(tmp_path: Path) -> None:
    folder = save_tiny_whisper(tmp_path)
    published = MODALITIES.load("audio_whisper").from_source(folder)
    assert (published.marker, published.data_key, published.num_positions) == ("<speech>", "speech_audios", 1)
    model = WhisperModel.from_pretrained(folder).eval()
    samples = read(tone(330, 1.7))
    prepared = published.extractor(samples[:RATE], sampling_rate=RATE, return_tensors="pt").input_features
    with torch.no_grad():
        expected = model(prepared, decoder_input_ids=torch.tensor([[5]])).last_hidden_state[0]
    torch.testing.assert_close(features(published, tone(330, 1.7)), expected, atol=1e-6, rtol=0)


def test_whisper_gives_positions_for_real_sound_alone_and_reads_on_in_windows(tmp_path: Path) -> None:
    modality = AudioModality.from_source(save_tiny_whisper(tmp_path))
    assert [modality.positions(modality.load(tone(300, seconds))) for seconds in (0.5, 1.0, 1.5)] == [25, 50, 75]
    pooled = AudioModality.from_source(str(tmp_path), settings={"pool": 5})
    assert pooled.positions(pooled.load(tone(300, 0.5))) == 5
    whole = features(modality, tone(300, 1.0))
    torch.testing.assert_close(features(pooled, tone(300, 1.0)), whole.view(10, 5, -1).mean(1), atol=1e-6, rtol=0)


def test_long_sounds_are_cut_or_refused_on_request(tmp_path: Path) -> None:
    folder = save_tiny_whisper(tmp_path)
    cut = AudioModality.from_source(folder, settings={"overlong": "cut"})
    torch.testing.assert_close(features(cut, tone(300, 1.5)), features(cut, tone(300, 1.0)))
    strict = AudioModality.from_source(folder, settings={"overlong": "error"})
    with pytest.raises(MediaError, match=r"1\.5 s long, the encoder reads 1 s"):
        strict.load(tone(300, 1.5))


def test_clap_as_published_is_normalised_and_drawn_by_its_seed(tmp_path: Path) -> None:
    folder = save_tiny_clap(tmp_path)
    published = MODALITIES.load("audio_clap").from_source(folder)
    assert (published.marker, published.data_key) == ("<sound>", "sounds")
    sound = {"array": np.tile(NOISE, 3) * np.linspace(0, 1, 3 * RATE), "sampling_rate": RATE}
    np.random.seed(7)
    first, state = features(published, sound), np.random.get_state()[1][0]
    np.random.seed(8)
    torch.testing.assert_close(features(published, sound), first, atol=0, rtol=0)
    assert np.random.get_state()[1][0] == 8 != state
    other = MODALITIES.load("audio_clap").from_source(folder, settings={"seed": 3})
    assert (features(other, sound) - first).abs().max() > 0
    extractor, model = (
        ClapFeatureExtractor.from_pretrained(folder),
        ClapAudioModelWithProjection.from_pretrained(folder),
    )
    short = extractor(read(tone(500)), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**short).audio_embeds
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(features(published, tone(500)), expected, atol=1e-6, rtol=0)


def test_clap_without_fusion_cuts(tmp_path: Path) -> None:
    folder = save_tiny_clap(tmp_path, fusion=False)
    published = MODALITIES.load("audio_clap").from_source(folder)
    assert published.settings.overlong == "cut"
    with pytest.raises(UsageError, match="without fusion"):
        AudioModality.from_source(folder, settings={"overlong": "fusion"})


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing")


def of_another_size(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"max_source_positions": 50', '"max_source_positions": 40'))


@pytest.mark.parametrize("damage", [without_weights, of_another_size])
def test_damaged_encoders(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    save_tiny_whisper(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError):
        AudioModality.from_source(str(tmp_path)).load_encoder(torch.float32)


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny_whisper(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("encoder.layers.1.fc1.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights.*encoder\.layers\.1\.fc1\.weight"):
        AudioModality.from_source(str(tmp_path)).load_encoder(torch.float32)


def test_wrong_sources_and_settings(tmp_path: Path) -> None:
    folder = save_tiny_whisper(tmp_path / "whisper")
    with pytest.raises(NotPossibleError, match="'bert'"):
        AudioModality.from_source(save_tiny_bert(tmp_path / "bert"))
    with pytest.raises(NotPossibleError, match="'whisper'"):
        MODALITIES.load("audio_clap").from_source(folder)
    with pytest.raises(CheckpointError, match="No audio encoder"):
        AudioModality.from_source(str(tmp_path / "nothing"))
    with pytest.raises(RecipeError, match="Did you mean 'features'"):
        AudioModality.from_source(folder, settings={"feature": "decoder"})
    with pytest.raises(UsageError, match="groups of 7"):
        AudioModality.from_source(folder, settings={"pool": 7}).load(tone(440))


def test_checkpoints_that_hold_more_than_the_encoder(tmp_path: Path) -> None:
    """As they are published: Whisper for transcription, CLAP with its text half."""
    whisper = AudioModality.from_source(save_tiny_whisper(tmp_path / "whisper"), settings={"features": "decoder"})
    talker = WhisperForConditionalGeneration(whisper.encoder_config)
    talker.model.load_state_dict(WhisperModel.from_pretrained(tmp_path / "whisper").state_dict())
    talker.save_pretrained(tmp_path / "talker")
    whisper.extractor.save_pretrained(tmp_path / "talker")
    from_talker = AudioModality.from_source(str(tmp_path / "talker"), settings={"features": "decoder"})
    torch.testing.assert_close(features(from_talker, tone(440)), features(whisper, tone(440)), atol=1e-6, rtol=0)

    clap = AudioModality.from_source(save_tiny_clap(tmp_path / "clap"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    both = ClapConfig(
        audio_config=clap.encoder_config.to_dict(), text_config={**sizes, "vocab_size": 32}, projection_dim=16
    )
    whole = ClapModel(both).eval()
    whole.save_pretrained(tmp_path / "whole")
    clap.extractor.save_pretrained(tmp_path / "whole")
    with torch.no_grad():
        prepared = clap.prepare(read(tone(440)))
        expected = whole.get_audio_features(**prepared).pooler_output
    from_whole = AudioModality.from_source(str(tmp_path / "whole"))
    torch.testing.assert_close(features(from_whole, tone(440)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", sorted(TINY_ENCODERS))
def test_encoders_compute_in_sixteen_bits(name: str, tmp_path: Path) -> None:
    modality = MODALITIES.load(name).from_source(TINY_ENCODERS[name].save(tmp_path))
    inputs = modality.collate([modality.load(item) for item in TINY_ENCODERS[name].items()])
    with torch.no_grad():
        half, whole = (
            modality.encode(modality.load_encoder(dtype), inputs)[0].float()
            for dtype in (torch.bfloat16, torch.float32)
        )
    assert (half - whole).abs().max() <= 0.1 * whole.abs().max()
