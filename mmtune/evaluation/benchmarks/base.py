"""What a benchmark is: rows in, one record a row from the model, scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mmtune.data.sample import Sample
from mmtune.model.decoding import Decoding

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scores:
    """What a benchmark found.

    Args:
        scores: The ``scores`` object of the result.
        items: One object a scored row.
        confidence: Intervals by score name.
        uninferred: Answers from which no verdict could be read.
        top_level: Further keys of the result.
    """

    scores: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    confidence: Mapping[str, Any]
    uninferred: int = 0
    top_level: Mapping[str, Any] = field(default_factory=dict)


class Benchmark(ABC):
    """A way to ask a model about rows and to score what it gives.

    A record is a JSON object: ``{"prediction": text, …}`` or whatever the benchmark measures, or ``{"error": {…}}`` for
    a row that failed, which scores as wrong.
    """

    name: ClassVar[str]
    scorer: ClassVar[str]
    rule: ClassVar[str] = "current"
    primary: ClassVar[str | None]  # the score that a minimum is compared with; None when a minimum makes no sense
    reads_predictions: ClassVar[bool] = True  # whether given answers can be scored without a model

    @abstractmethod
    def check(self, samples: Sequence[Sample]) -> None:
        """Refuse rows that cannot be scored.

        Raises:
            DataError: A row lacks what the benchmark needs, named by id and place.
        """

    @abstractmethod
    def run(
        self, model: Any, processor: Any, samples: Sequence[Sample], *, decoding: Decoding, batch_size: int
    ) -> Iterator[tuple[int, Record]]:
        """Ask the model; yields the index and the record of each row in any order."""

    @abstractmethod
    def score(self, samples: Sequence[Sample], records: Sequence[Record]) -> Scores:
        """Score the records of the samples, which come in the same order."""
