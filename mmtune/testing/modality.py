"""Proof that a modality keeps what the rest of the package relies on.

Shapes: N items, P positions of one item, D encoder width.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mmtune.core.errors import MediaError, UsageError
from mmtune.modalities import MODALITIES
from mmtune.modalities.base import Modality
from mmtune.testing.bench import TOLERANCES, open_bench, pictures
from mmtune.testing.encoders import TINY_ENCODERS
from mmtune.testing.method import check_bench
from mmtune.testing.properties import worst
from mmtune.testing.report import Report, broken, difference
from mmtune.testing.tiny import save_tiny_vision

Raw = Mapping[str, Tensor]


def check_modality(
    modality: str | type[Modality],
    *,
    source: str | None = None,
    settings: Mapping[str, Any] | None = None,
    items: Sequence[Any] | None = None,
    method: str = "llava",
) -> Report:
    """Check a modality by itself, then all properties of a method that reads it.

    By itself: items load on the CPU, the same each time and in another process; a missing one is a ``MediaError``; each
    has as many positions as was announced, of the announced width; items in a batch equal single ones, in any order; no
    item reads what a blank one does not; a saved encoder reads as before.

    Args:
        modality: The class, or the name of a registered modality.
        source: Folder of a small encoder; the modalities of this package have one of their own, but for ``imagebind``.
        settings: The modality's settings.
        items: At least three different items, of different lengths where there are such.
        method: The method to run it with.

    Returns:
        The findings, with the largest difference of each.

    Raises:
        VerificationError: A property does not hold; the message names it, with the numbers.
        UsageError: No source or fewer than three items for a modality that has none of its own.
    """
    kind: type[Modality] = MODALITIES.load(modality) if isinstance(modality, str) else modality
    if not isinstance(modality, str):
        MODALITIES.register(kind.name, kind)
    with TemporaryDirectory(prefix="mmtune-check-") as scratch:
        if kind.name == "image":
            source = source or save_tiny_vision(Path(scratch) / "encoder")
            items = items or pictures()
        elif kind.name in TINY_ENCODERS:
            source = source or TINY_ENCODERS[kind.name].save(Path(scratch) / "encoder")
            items = items or TINY_ENCODERS[kind.name].items()
        if source is None or items is None or len(items) < 3:
            raise UsageError(f"'{kind.name}' needs an encoder and three items.", fix="give source=… and items=[…]")
        report = _check_alone(kind.from_source(source, settings=settings), items, Path(scratch))
        entry = {"source": source, "settings": dict(settings or {})}
        with open_bench(method, encoders={kind.name: entry}, items={kind.name: items}) as bench:
            bench.name = f"{kind.name} with {method}"
            report.findings += check_bench(bench).findings
    return report


def _check_alone(modality: Modality, items: Sequence[Any], scratch: Path) -> Report:
    report = Report(modality.name)
    raws = [modality.load(item) for item in items]
    _check_loading(modality, items, raws, report)
    encoder = modality.load_encoder(torch.float32).double()
    alone = [_real(modality, encoder, [raw])[0] for raw in raws]  # each [P, D]
    for number, (raw, values) in enumerate(zip(raws, alone, strict=True)):
        announced = (modality.positions(raw), modality.width)
        if tuple(values.shape) != announced:
            what = f"item {number} gives {tuple(values.shape)} positions and width, {announced} was announced"
            raise broken(modality.name, "positions", what)
    report.add("positions", note=f"{sorted({len(values) for values in alone})} of width {modality.width}")
    together = _real(modality, encoder, raws)
    report.add("items in a batch", worst(together, alone), TOLERANCES[torch.float64])
    report.add(
        "items in any order", worst(_real(modality, encoder, raws[::-1]), alone[::-1]), TOLERANCES[torch.float64]
    )
    _check_blank(modality, encoder, raws, report)
    folder = str(scratch / "saved")
    modality.save_source(encoder.float(), folder)
    again = type(modality).from_source(folder, settings=modality.settings.model_dump())
    saved = _real(again, again.load_encoder(torch.float32).double(), [again.load(item) for item in items])
    report.add("saved encoder", worst(saved, together), 0.0)
    return report


def _check_loading(modality: Modality, items: Sequence[Any], raws: Sequence[Raw], report: Report) -> None:
    elsewhere: Modality = pickle.loads(pickle.dumps(modality))  # as a data-loader worker gets it
    for number, (item, raw) in enumerate(zip(items, raws, strict=True)):
        for key, value in elsewhere.load(item).items():
            if value.device.type != "cpu" or difference(value.float(), raw[key].float()) != 0.0:
                raise broken(
                    modality.name, "loading", f"'{key}' of item {number} differs the second time, or left the CPU"
                )
    report.add("loading", note="the same each time, also in another process")
    missing = "no-such-folder/no-such-item"
    try:
        modality.load(missing)
    except MediaError:
        report.add("missing items", note="refused with MediaError")
        return
    raise broken(modality.name, "missing items", f"'{missing}' was loaded")


def _check_blank(modality: Modality, encoder: nn.Module, raws: Sequence[Raw], report: Report) -> None:
    """What a blank item does not reach is not trained, so that no item may reach it."""
    blank = modality.blank()
    if blank is None or not list(encoder.parameters()):
        return
    unread = _unread(modality, encoder, blank)
    for number, raw in enumerate(raws):
        if wrong := unread - _unread(modality, encoder, raw):
            what = f"item {number} reads '{min(wrong)}' of the encoder, a blank one does not: let blank() give None"
            raise broken(modality.name, "blank item", what)
    report.add("blank item", note=f"{len(unread)} parameters are read by no item")


def _unread(modality: Modality, encoder: nn.Module, raw: Raw) -> set[str]:
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    values, _, _ = modality.encode(encoder, modality.collate([raw]))
    gradients = torch.autograd.grad(values.sum(), parameters, allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is None}


@torch.no_grad()
def _real(modality: Modality, encoder: nn.Module, raws: Sequence[Raw]) -> list[Tensor]:
    """Features of each item at its real positions; zero at line breaks, whose values a method puts in."""
    values, mask, breaks = modality.encode(encoder, modality.collate(raws))
    if breaks is not None:
        values = values.masked_fill(breaks.unsqueeze(-1), 0.0)
    if mask is None:
        return list(values)
    return [item[real] for item, real in zip(values, mask, strict=True)]
