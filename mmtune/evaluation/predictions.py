"""Files of answers: an append-only one that lets an evaluation go on where it stopped, and ones given from outside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample
from mmtune.evaluation.matching import ID_KEYS, match
from mmtune.train.files import writing

if TYPE_CHECKING:
    from mmtune.evaluation.benchmarks.base import Benchmark, Record

_TEXT_KEYS = ("prediction", "text", "answer", "caption")
_OWN_KEYS = ("key", "row", "id", "asked")


class PredictionLog:
    """An append-only JSONL of records, each under the key of the evaluation it belongs to.

    Records of another model, other data or another decoding stay in the file and are not read. Files beside it whose
    names differ in a number (``predictions.1.jsonl``) are read too, so that the work of several processes adds up.

    Args:
        asked: A short hash of each row's prompt; a record of another prompt is not read.
    """

    def __init__(self, path: Path, key: str, asked: Sequence[str] | None = None) -> None:
        self.path, self.key, self.asked = path, key, asked

    def read(self) -> dict[int, Record]:
        """The records of this evaluation by row; failed rows are left out, so that they are tried again."""
        found: dict[int, Record] = {}
        base = self.path.name.partition(".")[0]
        beside = self.path.parent.glob(f"{base}.*{self.path.suffix}")
        for path in sorted({self.path, self.path.with_name(base + self.path.suffix), *beside}):
            if path.exists():
                self._read(path, found)
        return found

    def _read(self, path: Path, found: dict[int, Record]) -> None:
        text = path.read_text(encoding="utf-8", errors="replace")
        for line in text.split("\n"):  # answers may hold other ends of lines
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # a line that a killed process left half-written
                continue
            if not isinstance(row, dict) or row.get("key") != self.key or "error" in row:
                continue
            place = int(row["row"])
            if self.asked is None or (place < len(self.asked) and row.get("asked") == self.asked[place]):
                found[place] = {name: value for name, value in row.items() if name not in _OWN_KEYS}

    def append(self, row: int, sample: Sample, record: Record) -> None:
        """Write one record and flush it."""
        asked = {"asked": self.asked[row]} if self.asked is not None else {}
        line = json.dumps({"key": self.key, "row": row, "id": sample.id, **asked, **record}, ensure_ascii=False)
        with writing(self.path), self.path.open("ab+") as file:
            file.seek(0, 2)
            torn = file.tell() > 0 and _last_byte(file) != b"\n"
            file.write((b"\n" if torn else b"") + line.encode() + b"\n")


def prompt_hash(sample: Sample) -> str:
    """A short hash of what a row asks; media count by their number only."""
    prompt = sample.without_answer()
    text = json.dumps([[turn.role, turn.text, len(turn.parts)] for turn in prompt.turns], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _last_byte(file: Any) -> bytes:
    file.seek(-1, 2)
    return bytes(file.read(1))


def read_predictions(
    path: Path, samples: Sequence[Sample], task: Benchmark | None = None
) -> tuple[dict[int, Record], int]:
    """Given answers by row of the data, matched by id; rows that share an id take answers in order.

    The file is JSON Lines or a JSON list, with the keys of our own files, LLaVA's answers or official results.

    Returns:
        The records, and how many answers belong to no row (they are ignored).

    Raises:
        DataError: The file is missing or a row is no object with an id and an answer.
    """
    return match(_newest(list(_given_rows(path)), path), samples, task)


def _newest(given: list[tuple[Mapping[str, Any], Record]], path: Path) -> list[tuple[Mapping[str, Any], Record]]:
    """The rows of a log of our own without those that were tried again; of other files all rows.

    Raises:
        DataError: The log holds answers of several models, data or settings.
    """
    if not all({"key", "row"} <= set(row) for row, _ in given):
        return given
    evaluations = len({str(row["key"]) for row, _ in given})
    if evaluations > 1:
        raise DataError(
            f"The file holds the answers of {evaluations} evaluations.",
            where=str(path),
            fix="give a file with those of one, from an output folder of its own",
        )
    return list({str(row["row"]): (row, record) for row, record in given}.values())


def _given_rows(path: Path) -> Iterator[tuple[Mapping[str, Any], Record]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the predictions: {error}", where=str(path), fix="check --predictions") from error
    if text.lstrip().startswith("["):
        for number, row in enumerate(_parsed(text, str(path))):
            yield _given_row(row, f"{path}#{number}")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield _given_row(_parsed(line, where), where)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"Not JSON: {error}", where=where, fix="give one JSON object a line") from error


def _given_row(row: Any, where: str) -> tuple[Mapping[str, Any], Record]:
    if not isinstance(row, Mapping):
        raise DataError("Not a JSON object.", where=where, fix='write {"id": …, "prediction": …}')
    named = any(row.get(key) is not None for key in ID_KEYS)
    if "error" in row and named:
        return row, {"error": row["error"]}
    text = next((row[key] for key in _TEXT_KEYS if key in row), None)
    if not named or not isinstance(text, str):
        keys = ", ".join(row) or "none"
        problem = "No id or no answer text" if text is None else f"The answer is {json.dumps(text)}, not a text"
        raise DataError(f"{problem}; its keys: {keys}.", where=where, fix='write {"id": …, "prediction": "…"}')
    return row, {"prediction": text}
