"""Tiny models for every test; they live in the package so that third parties can use them too."""

from mmtune.testing.tiny import (
    VOCAB_SIZE,
    save_tiny_lm,
    save_tiny_vision,
    tiny_image_processor,
    tiny_lm,
    tiny_tokenizer,
    tiny_vision,
)

__all__ = [
    "VOCAB_SIZE",
    "save_tiny_lm",
    "save_tiny_vision",
    "tiny_image_processor",
    "tiny_lm",
    "tiny_tokenizer",
    "tiny_vision",
]
