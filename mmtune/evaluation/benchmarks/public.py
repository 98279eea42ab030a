"""What public benchmarks share: files of several formats, and one answer a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Benchmark, Place, Record, Table, ask, place_of
from mmtune.evaluation.matching import match
from mmtune.evaluation.prompts import question
from mmtune.evaluation.reading.locate import data_file
from mmtune.evaluation.reading.pictures import Pictures, tsv_pictures
from mmtune.evaluation.reading.tables import Row, read_json, read_parquet, read_tsv

if TYPE_CHECKING:
    from mmtune.model.decoding import Decoding


class PublicBenchmark(Benchmark):
    """A benchmark that others publish numbers of."""

    reads_tables: ClassVar[bool] = True
    file_names: ClassVar[tuple[str, ...]]  # the files of a folder that are read, the preferred first
    question_names: ClassVar[tuple[str, ...]] = ()  # LLaVA's question files: prompts without answers
    submits: ClassVar[bool] = False  # whether answers to a split without gold answers are collected for submission
    answer_names: ClassVar[tuple[str, ...]] = ()  # the files that hold their answers, where not the first of all files

    def read(self, place: Place) -> Table:
        """The rows of a file in one of the formats that the benchmark comes in.

        Raises:
            DataError: No such file, or one of another form.
        """
        path = data_file(place.path, (*self.file_names, *self.question_names), folder_name=self.name)
        try:
            return self._read(path, place)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # rows of another benchmark
            message = f"The file is not of a form that '{self.name}' is read from ({type(error).__name__}: {error})."
            fix = f"give one of: {', '.join((*self.file_names, *self.question_names))}"
            raise DataError(message, where=str(path), fix=fix) from error

    def _read(self, path: Path, place: Place) -> Table:
        pictures = Pictures(path.parent, place.media_root, look=place.look)
        if path.suffix == ".tsv":
            rows = _named(read_tsv(path, pandas_na=self.options.pandas_na))
            return self._table(path, rows, self.tsv_rows(rows, tsv_pictures(rows, pictures)))
        if path.suffix == ".parquet":
            return Table(_located(self.parquet_rows(_named(read_parquet(path)), pictures), path), [path])
        value = read_json(path)
        if _is_questions(value):
            return self._with_questions(path, value, place, pictures)
        samples, files = self.json_rows(value, path, pictures)
        return Table(_located(samples, path), [path, *files])

    def _table(self, path: Path, rows: Sequence[Row], samples: Sequence[Sample]) -> Table:
        kept = {sample.id for sample in samples}
        exported = [row for row in rows if str(row.get("index")) in kept]
        plain = [{name: cell for name, cell in row.items() if name != "image"} for row in exported]
        return Table(_located(samples, path), [path], plain)

    def _with_questions(self, path: Path, rows: list[Row], place: Place, pictures: Pictures) -> Table:
        """LLaVA's question file: its prompts and pictures, with the answers of the official files beside it."""
        try:
            table = self.read(replace(place, path=self.official(path), look=False))
        except DataError as error:
            raise DataError(
                f"The file holds questions without answers, and no answers were found: {error.message}",
                where=str(path),
                fix="put the official file with the answers beside it",
            ) from error
        matched, _ = match([(row, row) for row in rows], table.samples, self)
        samples = [_asked(table.samples[at], matched[at], pictures) for at in sorted(matched)]
        return Table(_located(samples, path), [path, *table.files])

    def official(self, questions: Path) -> Path:
        """The file that holds the answers to LLaVA's questions."""
        return data_file(questions.parent, self.answer_names or self.file_names, folder_name=self.name)

    def tsv_rows(self, rows: Sequence[Row], pictures: Sequence[list[Any]]) -> list[Sample]:
        """Rows of VLMEvalKit's table; those without a picture are dropped, as it does."""
        drop = "image" in rows[0]
        return [self.tsv_row(row, found) for row, found in zip(rows, pictures, strict=True) if found or not drop]

    def tsv_row(self, row: Row, pictures: list[Any]) -> Sample:
        """One row of VLMEvalKit's table."""
        raise self._unknown("a table")

    def parquet_rows(self, rows: Sequence[Row], pictures: Pictures) -> list[Sample]:
        """The rows of Hugging Face's table."""
        raise self._unknown("a parquet file")

    def json_rows(self, value: Any, path: Path, pictures: Pictures) -> tuple[list[Sample], list[Path]]:
        """The rows of an official JSON file, and the further files that were read."""
        raise self._unknown("a JSON file")

    def _unknown(self, kind: str) -> DataError:
        return DataError(
            f"'{self.name}' is not read from {kind} of this form.", fix=f"give one of: {', '.join(self.file_names)}"
        )

    def run(
        self, model: Any, processor: Any, samples: Sequence[Sample], *, decoding: Decoding, batch_size: int
    ) -> Iterator[tuple[int, Record]]:
        yield from ask(model, processor, samples, decoding=decoding, batch_size=batch_size)

    def check(self, samples: Sequence[Sample]) -> None:
        if self.submits and not any(sample.extra.get("answer") for sample in samples):
            return
        for sample in samples:
            if not self.has_gold(sample):
                raise DataError(
                    f"The row has no gold answer of the form that '{self.name}' has.",
                    where=place_of(sample),
                    fix="give the split whose answers are public, or check that the file is of this benchmark",
                )

    def has_gold(self, sample: Sample) -> bool:
        """Whether a row can be scored."""
        return bool(sample.extra.get("answer"))


def one_answer(sample: Sample) -> str:
    """The single gold answer of a row."""
    return str(sample.extra["answer"])


def column(row: Row, *names: str) -> Any:
    """The first of several columns that a row has with something in it.

    Raises:
        DataError: It has none of them.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DataError(
        f"The row has no '{names[0]}'; it has: {', '.join(key for key in row if row[key] is not None) or 'nothing'}.",
        where=str(row.get("index", row.get("question_id", ""))) or None,
        fix="give a file in one of the formats of this benchmark",
    )


def beside(path: Path, *names: str) -> Path:
    """A file in the same folder, by the first of several patterns that fits.

    Raises:
        DataError: There is none.
    """
    return data_file(path.parent, names, folder_name=".")


def _named(rows: Sequence[Row]) -> list[Row]:
    """Rows with columns in lower case; single capitals are options."""
    return [{name if _is_option(name) else name.lower(): cell for name, cell in row.items()} for row in rows]


def _is_option(name: str) -> bool:
    return len(name) == 1 and "A" <= name <= "Z"


def _is_questions(value: Any) -> bool:
    """Whether this is LLaVA's form of questions: a prompt, a picture, and no answer."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and {"question_id", "text"} <= set(first) and "label" not in first


def _asked(sample: Sample, row: Row, pictures: Pictures) -> Sample:
    """The row with the prompt and the picture of LLaVA's question file."""
    shown = [pictures.file(str(row["image"]))] if row.get("image") else []
    asked = question(sample.id, str(row["text"]), shown)
    names = {**sample.extra.get("names", {}), "question_id": str(row["question_id"])}
    if row.get("src_index") is not None:
        names["index"] = str(row["src_index"])
    return replace(sample, turns=asked.turns, extra={**sample.extra, "names": names})


def _located(samples: Sequence[Sample], path: Path) -> list[Sample]:
    """The rows with the file that they come from."""
    return [replace(sample, source=sample.source or str(path)) for sample in samples]
