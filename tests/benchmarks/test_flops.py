"""Operations counted on empty tensors are those of the formulas, which give the known figures of the 7B models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from mmtune.modalities.image import ImageModality
from mmtune.model.configuration import MMTuneConfig
from mmtune.model.modeling import MMTuneModel
from mmtune.train.rehearsal import prompt_flops
from tests.benchmarks.published import PUBLISHED_7B, LanguageModel, Sizes, VisionTransformer, WeightsGenerator

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
    full = LanguageModel(layers=1, hidden=8, feed_forward=16, vocabulary=0)
    grouped = LanguageModel(layers=1, hidden=8, feed_forward=16, vocabulary=0, kv=2)
    assert full.forward(3) - grouped.forward(3) == 2 * 3 * (2 * 8 * 8 - 2 * 8 * 2)


SMALL = Sizes(
    LanguageModel(layers=4, hidden=64, feed_forward=96, vocabulary=100),
    VisionTransformer(layers=3, hidden=32, feed_forward=48, image_size=32, patch_size=8),
    WeightsGenerator(dim=16, depth=2, rank=4, types=5, active_layers=2),
)


def empty_model(method: str, sizes: Sizes, folder: Path) -> MMTuneModel:
    lm, encoder, generator = sizes.language_model, sizes.encoder, sizes.generator
    CLIPVisionConfig(
        hidden_size=encoder.hidden, intermediate_size=encoder.feed_forward, num_hidden_layers=encoder.layers,
        num_attention_heads=2, image_size=encoder.image_size, patch_size=encoder.patch_size,
    ).save_pretrained(folder)  # fmt: skip
    side = encoder.image_size
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )
    image = ImageModality.from_source(str(folder), settings={"layer": -1})  # all blocks run
    settings: dict[str, Any] = {}
    if method == "vlora":
        every = lm.layers // generator.active_layers
        settings = {"dim": generator.dim, "depth": generator.depth, "rank": generator.rank, "heads": 4, "every": every}
    with torch.device("meta"):
        language_model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=lm.hidden, intermediate_size=lm.feed_forward, num_hidden_layers=lm.layers,
                num_attention_heads=4, vocab_size=lm.vocabulary, max_position_embeddings=4096,
            )
        )  # fmt: skip
        model = MMTuneModel(
            MMTuneConfig(method=method, settings=settings), language_model,
            {"image": image.empty_encoder(torch.float32)}, {"image": image},
        )  # fmt: skip
    model.requires_grad_(False)
    model.set_trainable(["method"])
    return model


@pytest.mark.parametrize("sizes", [SMALL, pytest.param(PUBLISHED_7B, marks=pytest.mark.slow)])
def test_counted_is_what_the_formulas_say(sizes: Sizes, tmp_path: Path) -> None:
    picture = {"image": Image.new("RGB", (40, 40))}
    for method in ("llava", "vlora"):
        model = empty_model(method, sizes, tmp_path)
        language_side, encoder = prompt_flops(model, 128, picture)
        expected = sizes.llava(128) if method == "llava" else sizes.vlora(128, slots=1)
        assert language_side == pytest.approx(expected, rel=1e-3)
        assert encoder == pytest.approx(sizes.encoder.forward(), rel=1e-3)
