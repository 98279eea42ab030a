"""Files of answers: an append-only one that lets an evaluation go on where it stopped, and ones given from outside."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError, ResourceError
from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Record

_ID_KEYS = ("id", "index", "question_id")
_TEXT_KEYS = ("prediction", "text", "answer")


class PredictionLog:
    """An append-only JSONL of records, each under the key of the evaluation it belongs to.

    Records of another model, other data or another decoding stay in the file and are not read.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def read(self) -> dict[int, Record]:
        """The records of this evaluation by row; failed rows are left out, so that they are tried again."""
        found: dict[int, Record] = {}
        if not self.path.exists():
            return found
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # a line that a killed process left half-written
                continue
            if isinstance(row, dict) and row.get("key") == self.key and "error" not in row:
                found[int(row["row"])] = {k: v for k, v in row.items() if k not in ("key", "row", "id")}
        return found

    def append(self, row: int, sample: Sample, record: Record) -> None:
        """Write one record and flush it."""
        line = json.dumps({"key": self.key, "row": row, "id": sample.id, **record}, ensure_ascii=False)
        try:
            with self.path.open("ab+") as file:
                file.seek(0, 2)
                torn = file.tell() > 0 and _last_byte(file) != b"\n"
                file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        except OSError as error:
            raise ResourceError(
                f"Cannot write: {error}", where=str(self.path), fix="free space, or choose --output"
            ) from error


def _last_byte(file: Any) -> bytes:
    file.seek(-1, 2)
    return bytes(file.read(1))


def read_predictions(path: Path, samples: Sequence[Sample]) -> tuple[dict[int, Record], int]:
    """Given answers by row of the data, matched by id; rows that share an id take answers in order.

    Returns:
        The records, and how many answers belong to no row (they are ignored).

    Raises:
        DataError: The file is missing or a line is no object with an id and an answer.
    """
    waiting: dict[str, deque[int]] = {}
    for index, sample in enumerate(samples):
        waiting.setdefault(sample.id, deque()).append(index)
    found: dict[int, Record] = {}
    ignored = 0
    for row_id, record in _given_rows(path):
        rows = waiting.get(row_id)
        if rows:
            found[rows.popleft()] = record
        else:
            ignored += 1
    return found, ignored


def _given_rows(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the predictions: {error}", where=str(path), fix="check --predictions") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _given_row(line, f"{path}:{number}")


def _given_row(line: str, where: str) -> tuple[str, Record]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"Not JSON: {error}", where=where, fix="give one JSON object a line") from error
    if not isinstance(row, Mapping):
        raise DataError("Not a JSON object.", where=where, fix='write {"id": …, "prediction": …}')
    row_id = next((row[key] for key in _ID_KEYS if key in row), None)
    if "error" in row and row_id is not None:
        return str(row_id), {"error": row["error"]}
    text = next((row[key] for key in _TEXT_KEYS if key in row), None)
    if row_id is None or not isinstance(text, str):
        keys = ", ".join(row) or "none"
        raise DataError(
            f"No id or no answer text; its keys: {keys}.", where=where, fix='write {"id": …, "prediction": …}'
        )
    return str(row_id), {"prediction": text}
