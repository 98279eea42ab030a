"""Proof that a method keeps what the rest of the package relies on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmtune.methods.base import Method
from mmtune.testing import properties
from mmtune.testing.bench import Bench, open_bench
from mmtune.testing.report import Report

PROPERTIES = (
    properties.check_reaches,
    properties.check_padding,
    properties.check_text_only,
    properties.check_ragged,
    properties.check_permutation,
    properties.check_checkpointing,
    properties.check_saving,
    properties.check_generation,
    properties.check_beams,
)


def check_method(
    method: str | type[Method],
    settings: Mapping[str, Any] | None = None,
    *,
    language_model: str = "llama",
    encoders: Mapping[str, str | Mapping[str, Any]] | None = None,
    items: Mapping[str, Sequence[Any]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Report:
    """Check a method on a tiny language model and a tiny encoder, in seconds and without network.

    The properties: it is neutral at the start if it says so (``neutral_at_init``); what it perceives reaches the model;
    text-only rows need no stand-in; rows with no, one and several items share a batch; permuting the batch permutes the
    outputs; padding changes nothing; gradient checkpointing changes no gradient; a saved checkpoint loads as it was;
    cached decoding equals the whole sequence at once, and beams in a batch equal single ones.

    Args:
        method: The class, or the name of a registered method.
        settings: Its settings; its ``check_settings`` by default. The language model has 4 layers of width 32.
        language_model: Family of the tiny language model, a ``model_type`` of transformers; or a small model's folder.
        encoders: Modality to encoder folder, a tiny image encoder by default.
        items: Modality to at least three different items; random pictures by default.
        dtype: ``float64`` tells mistakes from rounding best; ``float32`` for a language model that cannot do that, as
            mixtures of experts, or those whose softmax is fixed to float32 (gemma2, bloom, mpt).

    Returns:
        The findings, with the largest difference of each.

    Raises:
        VerificationError: A property does not hold; the message names it, with the numbers.

    Example:
        ``print(check_method(Gist, {"num_tokens": 2}))``
    """
    opened = open_bench(method, settings, language_model=language_model, encoders=encoders, items=items, dtype=dtype)
    with opened as bench:
        return check_bench(bench)


def check_bench(bench: Bench) -> Report:
    """All properties of the method on a bench."""
    report = Report(bench.name)
    properties.check_neutral(bench, report)
    bench.wake()
    bench.model.to(bench.dtype)
    for check in PROPERTIES:
        check(bench, report)
    return report
