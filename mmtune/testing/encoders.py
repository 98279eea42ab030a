"""Tiny random encoders of all kinds of media and items for them, made on the spot: no network, a second each."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    ClapAudioConfig,
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    PreTrainedTokenizerFast,
    VideoMAEImageProcessorPil,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
    XCLIPConfig,
    XCLIPModel,
)

from mmtune.modalities.embedding import EmbeddingModality
from mmtune.testing.tiny import IMAGE_SIZE, save_tiny_vision

RATE = 16000
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"


def _save(made: Callable[[], Any], folder: str | Path, *parts: Any) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = made()
        for parameter in model.parameters():  # random models shall have opinions, and no bias of zero
            parameter.data.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


def save_tiny_whisper(folder: str | Path, **overrides: Any) -> str:
    """A Whisper whose window is one second, with 50 positions of width 32."""
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 64, "num_mel_bins": 8}
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 5}
    config = WhisperConfig(
        **{**layers, **sizes, **ids, "max_source_positions": 50, "max_target_positions": 16, **overrides}
    )
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins, sampling_rate=RATE, chunk_length=1)
    return _save(lambda: WhisperModel(config), folder, extractor)


def save_tiny_clap(folder: str | Path, *, fusion: bool = True) -> str:
    """CLAP's audio tower with a window of one second and vectors of width 16."""
    config = ClapAudioConfig(
        window_size=4, num_mel_bins=64, spec_size=64, hidden_size=32, projection_dim=16, patch_size=4,
        patch_stride=[4, 4], patch_embeds_hidden_size=16, depths=[1, 1], num_attention_heads=[2, 2],
        num_hidden_layers=2, enable_fusion=fusion, aff_block_r=1,
    )  # fmt: skip
    extractor = ClapFeatureExtractor(
        feature_size=64, sampling_rate=RATE, hop_length=320, max_length_s=1, fft_window_size=512, frequency_max=8000,
        truncation="fusion" if fusion else "rand_trunc",
    )  # fmt: skip
    return _save(lambda: ClapAudioModelWithProjection(config), folder, extractor)


def save_tiny_xclip(folder: str | Path, *, frames: int = 4) -> str:
    """An X-CLIP of a few frames and vectors of width 16."""
    vision = {**_SIZES, "image_size": IMAGE_SIZE, "patch_size": 8, "num_frames": frames, "mit_hidden_size": 16}
    mit = {"mit_intermediate_size": 48, "mit_num_hidden_layers": 1, "mit_num_attention_heads": 2}
    text = {**_SIZES, "vocab_size": 64, "max_position_embeddings": 16}
    config = XCLIPConfig(text_config=text, vision_config={**vision, **mit}, projection_dim=16, prompt_layers=1)
    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return _save(lambda: XCLIPModel(config), folder, processor)


def save_tiny_bert(folder: str | Path, *, max_tokens: int = 24) -> str:
    """A BERT whose tokens are letters, lower-cased, and that reads few of them."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = [*special, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    ids = {token: index for index, token in enumerate(vocabulary)}
    inner = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=max_tokens,
    )  # fmt: skip
    config = BertConfig(**_SIZES, vocab_size=len(ids), max_position_embeddings=max_tokens, pad_token_id=0)
    return _save(lambda: BertModel(config), folder, tokenizer)


def save_tiny_embedding(folder: str | Path, *, width: int = 6) -> str:
    """The folder of precomputed vectors: a width, and nothing else."""
    modality = EmbeddingModality.from_source("", settings={"width": width})
    modality.save_source(torch.nn.Identity(), str(folder))
    return str(folder)


def tone(frequency: float, seconds: float = 0.5) -> bytes:
    """A pure tone as a mono WAV file of 16 bits."""
    times = np.arange(int(RATE * seconds)) / RATE
    samples = (0.5 * 32767 * np.sin(2 * np.pi * frequency * times)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def animation(seed: int, frames: int = 6) -> bytes:
    """Random squares as an animated GIF."""
    values = np.random.default_rng(seed).integers(0, 255, (frames, 12, 16, 3), dtype=np.uint8)
    pictures = [Image.fromarray(value) for value in values]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    return file.getvalue()


@dataclass(frozen=True)
class TinyEncoder:
    """How to make an encoder of a modality, and items that it reads."""

    save: Callable[[Path], str]
    items: Callable[[], Sequence[Any]]


def _tones() -> list[bytes]:
    return [tone(440), tone(880, 0.3), tone(220, 1.4)]


def _animations() -> list[bytes]:
    return [animation(0), animation(1, 9), animation(2, 2)]


def _texts() -> list[dict[str, str]]:
    return [{"text": "A cat."}, {"text": "Two dogs ran. One sat down. It was late!"}, {"text": "No."}]


TINY_ENCODERS = {
    "audio": TinyEncoder(save_tiny_whisper, _tones),
    "audio_whisper": TinyEncoder(save_tiny_whisper, _tones),
    "audio_clap": TinyEncoder(save_tiny_clap, _tones),
    "video": TinyEncoder(save_tiny_vision, _animations),
    "video_xclip": TinyEncoder(save_tiny_xclip, _animations),
    "document": TinyEncoder(save_tiny_bert, _texts),
    "document_gte": TinyEncoder(save_tiny_bert, _texts),
    "embedding": TinyEncoder(save_tiny_embedding, lambda: [[0.5] * 6, [[1.0, -1, 2, 0, 3, 1]] * 2, [-0.5] * 6]),
}
"""By name of the modality; those for pictures are in :mod:`mmtune.testing.tiny`."""
