"""Rows that cannot be used: listed, counted, and allowed only within a budget."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError
from mmtune.model.encoding import OverlongError
from mmtune.train.feed import Rejected
from mmtune.train.files import write_text, writing


class Ledger:
    """``rejected.jsonl`` of a run.

    Args:
        max_fraction: Share of the rows that may be unusable; overlong rows that the recipe drops do not count.
        drops_overlong: Whether the recipe says ``data.overlong: drop``.
        rows: Rows of the data.
        writes: Whether this process writes the file; others only count.
    """

    def __init__(
        self, path: Path, max_fraction: float, rows: int, *, drops_overlong: bool, writes: bool = True
    ) -> None:
        self.path = path
        self._writes = writes
        self._budget = max_fraction * rows
        self._max_fraction = max_fraction
        self._drops_overlong = drops_overlong
        self._seen, self._bad = self._read()
        self.num_rejected = 0

    def add(self, rejected: Sequence[Rejected], samples: int) -> None:
        """Write rows down.

        Raises:
            DataError: More than the budget; the first one's own error when the budget is zero.
        """
        for row in rejected:
            self.num_rejected += 1
            dropped = self._drops_overlong and isinstance(row.error, OverlongError)
            if row.id not in self._seen:
                self._seen.add(row.id)
                self._bad += not dropped
                self._write(row, samples, dropped=dropped)
            if dropped:
                continue
            if self._budget == 0:
                raise row.error
            if self._bad > self._budget:
                raise DataError(
                    f"{self._bad} rows cannot be used, more than data.max_bad_fraction={self._max_fraction} allows. "
                    f"The last: {row.error.message}",
                    where=row.source or row.id,
                    fix=f"look at {self.path}, or raise data.max_bad_fraction",
                ) from row.error

    def note(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write down rows that were refused when the data was opened; the budget was asked there."""
        new = [row for row in rows if row["id"] not in self._seen]
        self._seen.update(row["id"] for row in new)
        self._append([{**row, "dropped": True} for row in new])

    def _read(self) -> tuple[set[str], int]:
        """Rows that an earlier part of the run wrote down; a last line that a crash cut off is taken away."""
        if not self.path.exists():
            return set(), 0
        text = self.path.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        if whole != text and self._writes:
            write_text(self.path, whole)
        rows = [json.loads(line) for line in whole.split("\n")[:-1]]  # texts may hold other ends of lines
        return {row["id"] for row in rows}, sum(not row["dropped"] for row in rows)

    def _write(self, row: Rejected, samples: int, *, dropped: bool) -> None:
        error = row.error
        line = {"id": row.id, "source": row.source, "code": error.code, "message": error.message, "where": error.where}
        self._append([{**line, "dropped": dropped, "after_samples": samples}])

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if not self._writes:
            return
        with writing(self.path), self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
