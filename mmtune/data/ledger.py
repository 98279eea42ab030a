"""What happened to the rows; nothing is left out without an entry."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from mmtune.core.errors import DataError

_FIRST = 5  # rejected rows that an error shows


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used; ``row`` is its number over all sources, from 0."""

    source: str
    line: int
    id: str
    reason: str
    text: str
    fix: str | None = None
    row: int = -1
    wished: bool = False  # left out because --reject asked for it: the budget does not count it

    def to_json(self) -> dict[str, Any]:
        """A line of ``rejected.jsonl``."""
        keys = ("source", "line", "id", "reason", "text", "fix", "row")
        found = asdict(self)
        return {key: found[key] for key in keys} | ({"wished": True} if self.wished else {})

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Rejected:
        """Read what :meth:`to_json` wrote."""
        return cls(**value)


@dataclass
class Ledger:
    """Counts of rows, media, reasons and warnings."""

    accepted: int = 0
    media: int = 0
    wished: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    first: list[Rejected] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """Rows that cannot be used."""
        return sum(self.reasons.values())

    def reject(self, row: Rejected) -> None:
        """Count a row that cannot be used."""
        self.reasons[row.reason] += 1
        self.wished += row.wished
        if len(self.first) < _FIRST and not row.wished:
            self.first.append(row)

    def accept(self, media: int, rules: Counter[str], *, rows: int) -> None:
        """Count rows that can."""
        self.accepted += rows
        self.media += media
        self.rules.update(rules)

    def check_budget(self, max_bad_fraction: float, *, listed: str | None = None) -> None:
        """Raise when too many rows were rejected.

        Args:
            listed: Where all of them are listed.

        Raises:
            DataError: With the first reasons and their places; also when no row is left.
        """
        total, bad = self.accepted + self.rejected, self.rejected - self.wished
        if total and self.accepted and bad <= max_bad_fraction * total:
            return
        if not total:
            raise DataError("The data has no rows.", fix="give files with rows")
        counts = ", ".join(f"{reason} {number}" for reason, number in sorted(self.reasons.items()))
        more = f"\nAll are listed in {listed}." if listed else ""
        if not self.first:
            raise DataError(f"--reject leaves none of {total} rows ({counts}).{more}", fix="reject less")
        shown = "\n".join(f"  {row.source}:{row.line}: {row.reason}: {row.text}" for row in self.first)
        also = {row.reason: self.reasons[row.reason] - 1 for row in self.first[:1]}
        same = next((f" ({number} more rows have the same reason)" for number in also.values() if number), "")
        first = self.first[0]
        raise DataError(
            f"{bad} of {total} rows cannot be used ({counts}), "
            f"at most a fraction of {max_bad_fraction:g} may be.\n{shown}{more}",
            where=f"{first.source}:{first.line}",
            fix=f"{first.fix or 'repair the rows'}{same}; or accept some loss: prepare-data has "
            "--max-bad-fraction, a recipe data.max_bad_fraction",
        )
