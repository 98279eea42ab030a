"""A row as the model gets it: its pictures as they are prepared, its prompt as a strip of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample
from mmtune.modalities.image import ImageModality
from mmtune.model.encoding import IGNORED, Encoded
from mmtune.model.processing import MMTuneProcessor
from mmtune.report.page import picture_uri

_LONGEST = 1500  # tokens of a strip that are shown
_PICTURES = 6


@dataclass(frozen=True, slots=True)
class Token:
    """A cell of a strip: ``kind`` is ``trained``, ``masked``, ``media`` or ``padding``."""

    text: str
    kind: str


@dataclass(frozen=True, slots=True)
class Strip:
    """One row.

    Attributes:
        error: Why the processor refuses the row; then there is nothing else.
        cut: Tokens that are not shown.
    """

    id: str
    source: str
    pictures: tuple[str, ...] = ()
    tokens: tuple[Token, ...] = ()
    positions: int = 0
    trained: int = 0
    cut: int = 0
    error: str | None = None


def make_strips(samples: Sequence[Sample], processor: MMTuneProcessor) -> list[Strip]:
    """Rows as one batch would hold them, padded to the longest."""
    encoded = [_encoded(sample, processor) for sample in samples]
    longest = max((len(row.input_ids) for row in encoded if isinstance(row, Encoded)), default=0)
    return [
        Strip(sample.id, sample.source, error=row)
        if isinstance(row, str)
        else _strip(sample, row, processor, longest - len(row.input_ids))
        for sample, row in zip(samples, encoded, strict=True)
    ]


def _encoded(sample: Sample, processor: MMTuneProcessor) -> Encoded | str:
    try:
        return processor.encode(sample)
    except DataError as error:
        return error.message


def _strip(sample: Sample, row: Encoded, processor: MMTuneProcessor, padding: int) -> Strip:
    tokens = _tokens(row, processor)
    shown = tokens[:_LONGEST]
    if padding:
        shown.append(Token(f"padding × {padding}", "padding"))
    return Strip(
        sample.id, sample.source, tuple(_pictures(row, processor)), tuple(shown), len(row.input_ids), row.num_targets,
        max(0, len(tokens) - _LONGEST),
    )  # fmt: skip


def _tokens(row: Encoded, processor: MMTuneProcessor) -> list[Token]:
    """The cells of a row; the placeholders of a medium are one cell."""
    names = {token_id: name for name, token_id in processor.placeholder_ids.items()}
    found: list[Token] = []
    run: tuple[str, int] | None = None
    for token_id, label in zip(row.input_ids, row.labels, strict=True):
        if token_id in names:
            run = (names[token_id], run[1] + 1 if run else 1)
            continue
        if run:
            found.append(Token(f"{run[0]} × {run[1]}", "media"))
            run = None
        found.append(Token(_text(token_id, processor.tokenizer), "masked" if label == IGNORED else "trained"))
    if run:
        found.append(Token(f"{run[0]} × {run[1]}", "media"))
    return found


def _text(token_id: int, tokenizer: Any) -> str:
    """A token as text, with blanks and line breaks to be seen."""
    token = tokenizer.convert_ids_to_tokens(int(token_id))
    if token is None:
        return f"#{token_id}"
    text = token if token in tokenizer.all_special_tokens else tokenizer.convert_tokens_to_string([token])
    if token.startswith(("\u2581", "\u0120")) and not text.startswith(" "):
        text = " " + text
    return text.replace("\n", "⏎").replace("\t", "⇥") or token


def _pictures(row: Encoded, processor: MMTuneProcessor) -> list[str]:
    """The prepared pixels of a row as pictures again: cropped, padded and scaled as the encoder sees them."""
    found = []
    for name, items in row.media.items():
        modality = processor.modalities[name]
        if not isinstance(modality, ImageModality):
            continue
        for item in items:
            pixels = item["pixel_values"]
            found += [_picture(tile, modality) for tile in (pixels if pixels.dim() == 4 else [pixels])]
    return [uri for uri in map(picture_uri, found[:_PICTURES]) if uri]


def _picture(pixels: Any, modality: ImageModality) -> Image.Image:
    """Undo the scaling of ``[3, H, W]``."""
    mean, deviation = (pixels.new_tensor(getattr(modality.processor, f"image_{part}")) for part in ("mean", "std"))
    shown = (pixels * deviation[:, None, None] + mean[:, None, None]).clamp(0, 1)
    return Image.fromarray((shown * 255).round().byte().permute(1, 2, 0).cpu().numpy())
