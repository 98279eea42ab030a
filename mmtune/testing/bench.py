"""The workbench of the checks: a tiny model with a method in it, and rows of text and media to run through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmtune.core.perception import Features, Perception
from mmtune.data.sample import Media, Sample, Text, Turn
from mmtune.methods import METHODS
from mmtune.methods.base import Method
from mmtune.model.build import build_model
from mmtune.model.encoding import Encoded
from mmtune.model.modeling import MMTuneModel
from mmtune.model.processing import MMTuneProcessor
from mmtune.testing.tiny import save_tiny_lm, save_tiny_vision

# Allowed differences of logits, whose size is about 1. In float64 a mistake stands out from rounding by many orders;
# some room is left for a method that computes something in float32.
TOLERANCES = {torch.float64: 1e-5, torch.float32: 2e-4}
TEMPLATE = "vlora"  # "USER: … ASSISTANT: …", the shortest there is
_QUESTIONS = ("What is it?", "Say which of these is the larger one.", "How many?", "Now tell me a story.")
_ANSWERS = ("A cat.", "The second.", "Two of them.", "Once.")


@dataclass
class Bench:
    """A tiny model, its processor and the items its rows show.

    Args:
        name: What is being checked, for messages.
        items: Sources of at least three different items, by modality.
        folder: Scratch space that lives as long as the check.
        dtype: What the model computes in.
    """

    name: str
    model: MMTuneModel
    processor: MMTuneProcessor
    items: Mapping[str, Sequence[Any]]
    folder: Path
    dtype: torch.dtype = torch.float64

    @property
    def tolerance(self) -> float:
        """The largest difference of logits that is rounding."""
        return TOLERANCES[self.dtype]

    def row(self, number: int, shown: Sequence[int]) -> Encoded:
        """A conversation that shows some items, by index, of every modality in the midst of its question.

        A method that has one place for media is shown the first of them.
        """
        if self.processor.lead is not None:
            shown = shown[:1]
        parts: list[Text | Media] = [Text("Look: ")]
        for modality, items in self.items.items():
            parts += [Media(modality, items[index % len(items)]) for index in shown]
        parts.append(Text(" " + _QUESTIONS[number % len(_QUESTIONS)]))
        answer = Turn("assistant", (Text(_ANSWERS[number % len(_ANSWERS)]),))
        return self.processor.encode(Sample(str(number), (Turn("user", tuple(parts)), answer)))

    def prompt(self, number: int, shown: Sequence[int]) -> Encoded:
        """The same row up to the point where the answer begins."""
        row = self.row(number, shown)
        length = next(index for index, label in enumerate(row.labels) if label >= 0)
        return Encoded(row.id, row.input_ids[:length], [], row.media, 0)

    def ragged(self) -> list[Encoded]:
        """Rows with one, no, two and one other item."""
        return [self.row(0, [0]), self.row(1, []), self.row(2, [1, 2]), self.row(3, [2])]

    def batch(self, rows: Sequence[Encoded], side: str = "right") -> dict[str, Any]:
        """Rows as the keyword arguments of the model."""
        batch = dict(self.processor.collate(rows, side="left" if side == "left" else "right"))
        batch.pop("ids", None)
        return batch

    @torch.no_grad()
    def logits(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """Logits of each row at its real positions, ``[T_row, V]``."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        scores = self.model(**inputs).logits
        return [row[mask.bool()] for row, mask in zip(scores, batch["attention_mask"], strict=True)]

    def alone(self, rows: Sequence[Encoded]) -> list[Tensor]:
        """Logits of each row in a batch of its own."""
        return [self.logits(self.batch([row]))[0] for row in rows]

    @contextmanager
    def tokens_only(self) -> Iterator[None]:
        """The method without its deltas and routes, which is the plain language model where it makes no tokens."""
        method, perceive = self.model.method, self.model.method.perceive

        def reduced(features: Mapping[str, Features], batch_size: int) -> Perception:
            return Perception(tokens=perceive(features, batch_size).tokens)

        method.perceive = reduced  # type: ignore[method-assign]
        try:
            yield
        finally:
            del method.perceive  # the class's own shows again

    @torch.no_grad()
    def wake(self, seed: int = 0) -> None:
        """Shake every parameter of the method, so that nothing holds only because something is still zero."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.model.method.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)


@contextmanager
def open_bench(
    method: str | type[Method],
    settings: Mapping[str, Any] | None = None,
    *,
    language_model: str = "llama",
    encoders: Mapping[str, str | Mapping[str, Any]] | None = None,
    items: Mapping[str, Sequence[Any]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Iterator[Bench]:
    """Build a tiny language model of four layers with a method in it; an image encoder unless others are given."""
    if not isinstance(method, str):
        METHODS.register(method.name, method)
    name = method if isinstance(method, str) else method.name
    if settings is None:
        settings = METHODS.load(name).check_settings
    with TemporaryDirectory(prefix="mmtune-check-") as scratch:
        folder = Path(scratch)
        base = language_model
        if not Path(base).is_dir():
            base = save_tiny_lm(folder / "llm", language_model, num_hidden_layers=4)
        chosen = encoders or {"image": save_tiny_vision(folder / "vision", "clip")}
        # Loading starts from seed 0: with another one here, values that a checkpoint forgets cannot pass unnoticed.
        model, processor = build_model(
            base=base, encoders=chosen, method=name, settings=settings, template=TEMPLATE, device="cpu", seed=1
        )
        yield Bench(name, model.eval(), processor, items or {"image": pictures()}, folder, dtype)


def pictures(count: int = 3) -> list[Image.Image]:
    """Random pictures of different shapes."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(16, 16), (24, 12), (10, 20)]
    made = []
    for index in range(count):
        width, height = sizes[index % len(sizes)]
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        made.append(Image.fromarray(pixels.numpy()))
    return made
