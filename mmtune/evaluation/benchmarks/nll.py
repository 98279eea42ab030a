"""Mean negative log-likelihood per target token of a conversation file, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mmtune.core.errors import DataError, MMTuneError, NumericalError
from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Benchmark, Record, Scores
from mmtune.evaluation.statistics import ratio_interval
from mmtune.model.batches import halving, to_device
from mmtune.model.decoding import Decoding

IGNORE = -100
_WINDOW = 16  # batches encoded ahead to be sorted by length


class NegativeLogLikelihood(Benchmark):
    """How surprised the model is by the assistant's turns; the targets are exactly those of training."""

    name: ClassVar[str] = "nll"
    scorer: ClassVar[str] = "mmtune nll: mean over all target tokens, float32"
    primary: ClassVar[str | None] = None
    reads_predictions: ClassVar[bool] = False

    def check(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if not any(turn.role == "assistant" for turn in sample.turns):
                raise DataError("The row has no assistant turn.", where=sample.source or sample.id, fix="take it out")

    def run(
        self, model: Any, processor: Any, samples: Sequence[Sample], *, decoding: Decoding, batch_size: int
    ) -> Iterator[tuple[int, Record]]:
        was_training = model.training
        model.eval()
        try:
            for start in range(0, len(samples), batch_size * _WINDOW):
                window = range(start, min(len(samples), start + batch_size * _WINDOW))
                yield from _measure(model, processor, samples, window, decoding, batch_size)
        finally:
            model.train(was_training)

    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        items = []
        for sample, record in zip(samples, records, strict=True):
            if "error" not in record:
                items.append({"id": sample.id, "nll": record["nll"], "num_tokens": record["num_tokens"]})
        tokens = [float(item["num_tokens"]) for item in items]
        sums = [float(item["nll"]) * item["num_tokens"] for item in items]
        if not sum(tokens):
            raise NumericalError("No row gave a single target token.", fix="look at the errors in predictions.jsonl")
        mean = sum(sums) / sum(tokens)
        scores = {"nll": mean, "perplexity": float(torch.tensor(mean, dtype=torch.float64).exp())}
        scores["num_tokens"] = int(sum(tokens))
        confidence = {"nll": ratio_interval(sums, tokens)}
        return Scores(scores, items, confidence, top_level={"nll": mean, "items": items})


def _measure(
    model: Any, processor: Any, samples: Sequence[Sample], window: range, decoding: Decoding, batch_size: int
) -> Iterator[tuple[int, Record]]:
    ready = []
    limit = model.host.max_positions
    for index in window:
        try:
            encoded = processor.encode(samples[index], max_length=limit, overlong="error", template=decoding.template)
        except MMTuneError as error:
            yield index, {"error": error.to_json()}
        else:
            ready.append((index, encoded))
    ready.sort(key=lambda pair: (-len(pair[1].input_ids), pair[0]))

    def work(pairs: Sequence[tuple[int, Any]]) -> list[Record]:
        return negative_log_likelihood(model, processor, [encoded for _, encoded in pairs])

    def give_up(pair: tuple[int, Any], error: MMTuneError) -> Record:
        return {"error": error.to_json()}

    for (index, _), record in halving(ready, batch_size, work, give_up):
        yield index, record


@torch.no_grad()
def negative_log_likelihood(model: Any, processor: Any, encoded: Sequence[Any]) -> list[Record]:
    """The mean loss over the target tokens of each encoded sample, and how many there are.

    Returns:
        One ``{"nll", "num_tokens"}`` a sample.
    """
    batch = dict(processor.collate(encoded, side="right"))
    batch.pop("ids", None)
    labels = batch.pop("labels")
    output = model(**to_device(batch, model.device))
    sums, counts = _token_losses(output.logits, labels.to(output.logits.device))
    return [
        {"nll": total / max(1, count), "num_tokens": count}
        for total, count in zip(sums.tolist(), counts.tolist(), strict=True)
    ]


def _token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of losses and number of targets of each row, ``[B]`` each; a row at a time to keep the float32 copy small."""
    sums = []
    for row, targets in zip(logits[:, :-1], labels[:, 1:], strict=True):  # [T - 1, V], [T - 1]
        sums.append(functional.cross_entropy(row.float(), targets, ignore_index=IGNORE, reduction="sum"))
    return torch.stack(sums), (labels[:, 1:] != IGNORE).sum(dim=1)
