"""What a benchmark is: rows in, one record a row from the model, scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmtune.data.sample import Sample
from mmtune.evaluation.reading.conversations import read_conversations

if TYPE_CHECKING:  # scores of given answers are made without torch
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
        scorer: Names the scorer where it depends on the data's format.
    """

    scores: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    confidence: Mapping[str, Any]
    uninferred: int = 0
    top_level: Mapping[str, Any] = field(default_factory=dict)
    scorer: str | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How a benchmark is read, asked and scored.

    Args:
        rule: Version of the scorer.
        pandas_na: Read cells of tables as pandas does by default.
        prompt: ``llava`` asks as VLMEvalKit asks LLaVA's models, ``vlmevalkit`` as it asks all others.
    """

    rule: str = "current"
    pandas_na: bool = False
    prompt: str = "llava"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the rows of a benchmark are.

    Args:
        path: A data file, or a folder that holds it.
        media_root: Further folders that media are looked up in.
        look: Whether media are needed; answers that are given are scored without them.
    """

    path: Path
    media_root: tuple[str | Path, ...] = ()
    look: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a benchmark and the files they come from.

    Args:
        samples: One a row, in order. ``extra`` holds what scoring needs, and under ``names`` the names by which answers
            may refer to the row (``{"question_id": "7"}``) besides its id.
        files: Their bytes stand for the data.
        exported: The columns of the table as it was, without pictures, for the export; empty for other formats.
    """

    samples: Sequence[Sample]
    files: Sequence[Path]
    exported: Sequence[Mapping[str, Any]] = ()


class Benchmark(ABC):
    """A way to ask a model about rows and to score what it gives.

    A record is a JSON object: ``{"prediction": text, …}`` or whatever the benchmark measures, or ``{"error": {…}}`` for
    a row that failed, which scores as wrong.
    """

    name: ClassVar[str]
    scorer: ClassVar[str]
    rule: ClassVar[str] = "current"
    rules: ClassVar[tuple[str, ...]] = ("current",)
    reads_tables: ClassVar[bool] = False  # whether there are cells that pandas would read as empty
    primary: ClassVar[str | None]  # the score that a minimum is compared with; None when a minimum makes no sense
    reads_predictions: ClassVar[bool] = True  # whether given answers can be scored without a model
    shared_names: ClassVar[frozenset[str]] = frozenset()  # names under which one answer serves several rows

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()

    def read(self, place: Place) -> Table:
        """The rows; here of a conversation file, prepared folder or list of both.

        Raises:
            DataError: No rows, or rows of another form.
        """
        return Table(*read_conversations(place.path, place.media_root, look=place.look))

    def first(self, samples: Sequence[Sample], limit: int) -> list[Sample]:
        """The first rows of a table."""
        return list(samples[:limit])

    def names_of(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        """Further names by which a given answer refers to its row, made from several of its keys."""
        return {}

    def main_score(self, scores: Mapping[str, Any]) -> tuple[str, float]:
        """The name and value of the score that a minimum is compared with."""
        name = str(self.primary)
        return name, float(scores[name])

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


def ask(
    model: Any, processor: Any, samples: Sequence[Sample], *, decoding: Decoding, batch_size: int
) -> Iterator[tuple[int, Record]]:
    """The model's answers as records; a row that cannot be answered has its error."""
    from mmtune.model.generation import answers

    stream = answers(model, processor, samples, decoding, batch_size=batch_size, on_error="record")
    for index, given in stream:
        if given.error is not None:
            yield index, {"error": dict(given.error)}
            continue
        record: Record = {"prediction": given.text, "finish_reason": given.finish_reason}
        yield index, record | {"token_ids": given.token_ids, "prompt_tokens": given.prompt_tokens}


def said(record: Record) -> str:
    """The answer of a record; a failed row said nothing."""
    return str(record.get("prediction", ""))


def place_of(sample: Sample) -> str:
    """Where a row is, for messages."""
    return f"{sample.source} (id {sample.id})" if sample.source else f"id {sample.id}"
