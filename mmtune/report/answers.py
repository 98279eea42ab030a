"""Rows that a model answers for the report of its run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.qa import verdict
from mmtune.model.generation import Decoding, answer
from mmtune.report.gallery import Shown, show, spread


def answer_samples(
    model: Any, processor: Any, samples: Sequence[Sample], *, count: int = 8, template: str | None = None
) -> list[Shown]:
    """Cards of a few rows, spread over a data set, with the model's greedy answers.

    Args:
        model: An ``MMTuneModel``.
        processor: Its ``MMTuneProcessor``.
        template: Prompt template, the processor's own when absent.
    """
    chosen = [samples[index] for index in spread(count, len(samples))]
    decoding = Decoding(max_new_tokens=64, template=template)
    given = answer(model, processor, chosen, decoding, batch_size=count, on_error="record")
    cards = []
    for sample, found in zip(chosen, given, strict=True):
        if found.error is None:
            right = None if sample.answer is None else bool(verdict(found.text, sample.answer)["exact_match"])
            cards.append(show(sample, {"model": found.text}, {} if right is None else {"model": right}))
    return cards
