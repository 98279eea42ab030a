"""Floating-point operations by formula: what a picture costs as tokens (LLaVA) and as weights (VLoRA).

Two operations a multiply-add, one prompt read at once, no halving for causal attention; norms, softmax and other
element-wise work are left out. Shapes: n positions, h hidden size, f feed-forward size, P patches, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LanguageModel:
    """A Llama-like decoder; ``kv`` is the width of keys and values where heads are grouped."""

    layers: int
    hidden: int
    feed_forward: int
    vocabulary: int
    kv: int | None = None

    def forward(self, positions: int) -> float:
        """Reading a prompt of so many positions, with logits at all of them."""
        n, h = positions, self.hidden
        linear = 2 * h * h + 2 * h * (self.kv or h) + 3 * h * self.feed_forward
        return self.layers * (2 * n * linear + 4 * n * n * h) + 2 * n * h * self.vocabulary


@dataclass(frozen=True)
class VisionTransformer:
    """A CLIP-like encoder, with a class token beside the patches."""

    layers: int
    hidden: int
    feed_forward: int
    image_size: int
    patch_size: int

    @property
    def patches(self) -> int:
        """P of one picture."""
        return (self.image_size // self.patch_size) ** 2

    def forward(self) -> float:
        """Encoding one picture."""
        n, h = self.patches + 1, self.hidden
        blocks = self.layers * (2 * n * (4 * h * h + 2 * h * self.feed_forward) + 4 * n * n * h)
        return blocks + 2 * self.patches * h * 3 * self.patch_size**2


@dataclass(frozen=True)
class WeightsGenerator:
    """VLoRA's generator for sites of equal width, one decoder a type."""

    dim: int
    depth: int
    rank: int
    types: int
    active_layers: int

    def forward(self, patches: int, visual: int, hidden: int) -> float:
        """Making the A factors of one picture; it does not depend on the text."""
        d, q = self.dim, self.active_layers
        on_queries = 2 * q * d * d * (4 + 2 + 8)  # self-attention; query and output of cross-attention; feed-forward
        on_patches = 2 * patches * d * 2 * d  # keys and values of cross-attention
        attention = 4 * q * q * d + 4 * q * patches * d
        decoder = self.depth * (on_queries + on_patches + attention) + 2 * q * d * hidden * self.rank
        return 2 * patches * visual * d + self.types * decoder

    def deltas(self, positions: int, hidden: int) -> float:
        """The low-rank path ``(x A) B`` at all sites."""
        return self.active_layers * self.types * 4 * hidden * self.rank * positions


@dataclass(frozen=True)
class Sizes:
    """A language model, an encoder and a generator that belong together."""

    language_model: LanguageModel
    encoder: VisionTransformer
    generator: WeightsGenerator

    def llava(self, text: int) -> float:
        """Projector of two layers, then a prompt of text and patches; without the encoder."""
        h, patches = self.language_model.hidden, self.encoder.patches
        projector = 2 * patches * (self.encoder.hidden * h + h * h)
        return projector + self.language_model.forward(text + patches)

    def vlora(self, text: int, slots: int = 0) -> float:
        """Generator, then a prompt of text with the low-rank path; without the encoder.

        Args:
            slots: Masked positions that the picture keeps in the prompt; the published estimate leaves out its one.
        """
        lm, generator = self.language_model, self.generator
        made = generator.forward(self.encoder.patches, self.encoder.hidden, lm.hidden)
        return made + lm.forward(text + slots) + generator.deltas(text + slots, lm.hidden)


PUBLISHED_7B = Sizes(
    LanguageModel(layers=32, hidden=4096, feed_forward=11008, vocabulary=32000),
    VisionTransformer(layers=24, hidden=1024, feed_forward=4096, image_size=336, patch_size=14),
    WeightsGenerator(dim=512, depth=8, rank=64, types=5, active_layers=8),
)
"""Vicuna-7B, CLIP ViT-L/14-336 and the published generator."""
