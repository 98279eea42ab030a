"""The formulas give the known figures of the published 7B models."""

from __future__ import annotations

import pytest

from benchmarks.flops import PUBLISHED_7B

TERA, GIGA = 1e12, 1e9
TABLE = [  # text tokens, LLaVA, VLoRA (TFLOP), their ratio, the ratio with the encoder on both sides
    (16, 8.031, 0.250, 0.031, 0.075),
    (32, 8.252, 0.463, 0.056, 0.098),
    (64, 8.696, 0.889, 0.102, 0.140),
    (128, 9.587, 1.744, 0.182, 0.213),
    (256, 11.381, 3.466, 0.305, 0.327),
    (512, 15.022, 6.963, 0.464, 0.477),
    (1024, 22.509, 14.162, 0.629, 0.635),
]


@pytest.mark.parametrize(("text", "llava", "vlora", "ratio", "with_encoder"), TABLE)
def test_the_published_sizes_give_the_known_table(
    text: int, llava: float, vlora: float, ratio: float, with_encoder: float
) -> None:
    tokens, weights = PUBLISHED_7B.llava(text), PUBLISHED_7B.vlora(text)
    encoder = PUBLISHED_7B.encoder.forward()
    assert tokens / TERA == pytest.approx(llava, abs=6e-4)
    assert weights / TERA == pytest.approx(vlora, abs=6e-4)
    assert weights / tokens == pytest.approx(ratio, abs=6e-4)
    assert (weights + encoder) / (tokens + encoder) == pytest.approx(with_encoder, abs=6e-4)


def test_parts_of_the_published_sizes() -> None:
    encoder, generator = PUBLISHED_7B.encoder, PUBLISHED_7B.generator
    assert encoder.patches == 576
    assert encoder.forward() / GIGA == pytest.approx(382, abs=0.5)
    assert generator.forward(576, 1024, 4096) / GIGA == pytest.approx(38.2, abs=0.05)
    assert generator.deltas(1, 4096) / 1e6 == pytest.approx(41.9, abs=0.05)


def test_grouped_keys_and_values_cost_less() -> None:
    from benchmarks.flops import LanguageModel

    full = LanguageModel(layers=1, hidden=8, feed_forward=16, vocabulary=0)
    grouped = LanguageModel(layers=1, hidden=8, feed_forward=16, vocabulary=0, kv=2)
    assert full.forward(3) - grouped.forward(3) == 2 * 3 * (2 * 8 * 8 - 2 * 8 * 2)
