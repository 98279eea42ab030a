"""From data files to checked samples: what ``prepare-data`` and training on raw files have in common."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mmtune.core.errors import DataError
from mmtune.data.checks import check_sample
from mmtune.data.media import CheckMedia, Found, MediaLookup, check_media
from mmtune.data.messages import RowError
from mmtune.data.reading import RawRow, read_rows
from mmtune.data.sample import Sample
from mmtune.data.sources import ParseRow, detect, load_format

_CHUNK = 1024  # rows that are checked at once


@dataclass(frozen=True, slots=True)
class Accepted:
    """A row that can be used, with what was found for each of its media."""

    sample: Sample
    found: tuple[Found, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used."""

    source: str
    line: int
    id: str
    reason: str
    text: str
    fix: str | None = None

    def to_json(self) -> dict[str, object]:
        """A line of ``rejected.jsonl``."""
        return {"source": self.source, "line": self.line, "id": self.id, "reason": self.reason, "text": self.text}


@dataclass(frozen=True)
class Source:
    """One data file, its format and where its media are looked up."""

    path: Path
    format: str
    parse: ParseRow
    lookup: MediaLookup

    @classmethod
    def open(cls, path: Path, format: str, lookup: MediaLookup) -> Source:
        """Find out the format of a file; ``auto`` looks at its first row.

        Raises:
            DataError: A file without rows, or of no known format.
            UsageError: No such format.
        """
        if format == "auto":
            first = next((row for row in read_rows(path) if not isinstance(row.value, RowError)), None)
            if first is None:
                raise DataError("The file has no rows.", where=str(path), fix="give a file with rows")
            format = detect(first.value, f"{path}:{first.line}")
        return cls(path, format, load_format(format).parse, lookup)

    def rows(self) -> Iterator[RawRow]:
        """The rows as the file holds them."""
        return read_rows(self.path)

    def sha256(self) -> str:
        """Hash of the file."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


@dataclass
class Ledger:
    """What happened to the rows; nothing is left out without an entry."""

    accepted: int = 0
    media: int = 0
    leading_answers: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    first: list[Rejected] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """Rows that cannot be used."""
        return sum(self.reasons.values())

    def add(self, row: Accepted | Rejected) -> None:
        """Count a row."""
        if isinstance(row, Rejected):
            self.reasons[row.reason] += 1
            if len(self.first) < 5:
                self.first.append(row)
            return
        self.accepted += 1
        self.media += len(row.found)
        self.rules.update(found.rule for found in row.found)
        roles = [turn.role for turn in row.sample.turns if turn.role != "system"]
        self.leading_answers += next((at for at, role in enumerate(roles) if role != "assistant"), len(roles))

    def check_budget(self, max_bad_fraction: float, *, listed: str | None = None) -> None:
        """Raise when too many rows were rejected.

        Args:
            listed: Where all of them are listed.

        Raises:
            DataError: With the first reasons and their places; also when no row is left.
        """
        total = self.accepted + self.rejected
        if total and self.accepted and self.rejected <= max_bad_fraction * total:
            return
        if not total:
            raise DataError("The data has no rows.", fix="give files with rows")
        shown = "\n".join(f"  {row.source}:{row.line}: {row.reason}: {row.text}" for row in self.first)
        counts = ", ".join(f"{reason} {number}" for reason, number in sorted(self.reasons.items()))
        more = f"\nAll are listed in {listed}." if listed else ""
        first = self.first[0]
        raise DataError(
            f"{self.rejected} of {total} rows cannot be used ({counts}), "
            f"at most a fraction of {max_bad_fraction:g} may be.\n{shown}{more}",
            where=f"{first.source}:{first.line}",
            fix=f"{first.fix or 'repair the rows'}; or accept some loss with --max-bad-fraction",
        )


def take_in(
    sources: Sequence[Source],
    check: CheckMedia,
    *,
    workers: int = 0,
    keep: Callable[[int], bool] | None = None,
) -> Iterator[Accepted | Rejected]:
    """All rows of the sources in order, checked.

    Args:
        workers: Threads that look at media; the result does not depend on it.
        keep: Whether to take the row of a number, counted over all sources; the others are passed over.
    """
    numbered = enumerate((source, row) for source in sources for row in source.rows())
    wanted = (pair for number, pair in numbered if keep is None or keep(number))

    def judge(pair: tuple[Source, RawRow]) -> Accepted | Rejected:
        return _judge(*pair, check)

    if workers < 2:
        yield from map(judge, wanted)
        return
    with ThreadPoolExecutor(workers) as pool:
        while chunk := list(islice(wanted, _CHUNK)):
            yield from pool.map(judge, chunk)


def _judge(source: Source, row: RawRow, check: CheckMedia) -> Accepted | Rejected:
    default_id = f"{source.path.stem}-{row.index}"
    name = default_id
    try:
        if isinstance(row.value, RowError):
            raise row.value
        if not isinstance(row.value, dict):
            raise RowError("not_an_object", f"The row is {str(row.value)[:80]!r}, not an object.", fix="give an object")
        name = str(row.value.get("id", default_id))
        parsed = source.parse(row.value, default_id)
        sample = Sample(parsed.id, parsed.turns, f"{source.path}:{row.line}", parsed.extra)
        check_sample(sample)
        found = tuple(source.lookup.find(item.uri) for item in sample.media)
        for item, place in zip(sample.media, found, strict=True):
            check_media(item, place, check)
    except RowError as error:
        return Rejected(str(source.path), row.line, name, error.reason, error.message, error.fix)
    return Accepted(sample, found)
