"""From sources to checked samples: what ``prepare-data`` and training on raw files have in common."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError
from mmtune.data.checks import check_sample, check_unicode
from mmtune.data.examination import Facts, examine
from mmtune.data.ledger import Rejected
from mmtune.data.lengths import Lengths
from mmtune.data.media import CheckMedia, Found, MediaLookup
from mmtune.data.messages import RowError
from mmtune.data.oddities import warnings_of
from mmtune.data.readers import find_reader
from mmtune.data.readers.arrow import hub_rows
from mmtune.data.reading import RawRow
from mmtune.data.sample import Sample
from mmtune.data.signatures import Signer
from mmtune.data.sources import claiming, detect, load_format

_EMBEDDED_BYTES = 1 << 30  # of a row; a column holds 2 GiB at once
_TRIED = 100  # rows whose format is looked at


@dataclass(frozen=True, slots=True)
class Accepted:
    """A row that can be used, with what was found for each of its media.

    Attributes:
        number: Of the row over all sources, from 0.
        origin: Index of its source.
        split: The split that the source puts it in, if any.
        positions: Of the row in the model, and how many are trained; None without a model.
        warnings: (code, text) of what is odd.
        signature: By which near-duplicates are found, where these are asked for.
        extra: What else the row holds, as JSON.
    """

    sample: Sample
    found: tuple[Found, ...]
    facts: tuple[Facts, ...] = ()
    number: int = 0
    origin: int = 0
    split: str | None = None
    positions: int | None = None
    targets: int | None = None
    warnings: tuple[tuple[str, str], ...] = ()
    signature: bytes | None = None
    extra: str | None = None


@dataclass(frozen=True)
class Source:
    """One data file, folder or data set of the hub, its format and where its media are looked up.

    Attributes:
        split: The split that all its rows belong to, where its name says so.
        weight: How often its rows are used.
        hub: Whether ``path`` names a data set on the hub.
    """

    path: Path
    format: str
    lookup: MediaLookup
    split: str | None = None
    weight: float = 1.0
    hub: bool = False

    @classmethod
    def open(cls, path: Path, format: str, lookup: MediaLookup, *, hub: bool = False, **options: Any) -> Source:
        """Find out the format of a source; ``auto`` looks at its first rows.

        Raises:
            DataError: A source without rows, or of no known format.
            UsageError: No such format.
        """
        if format == "auto":
            format = (None if hub else claiming(path)) or cls._detect(path, hub)
        load_format(format)
        return cls(path, format, lookup, hub=hub, **options)

    @classmethod
    def _detect(cls, path: Path, hub: bool) -> str:
        """The format of the first row that has one; those before it are rejected one by one."""
        unknown = unreadable = None
        for row in islice(_raw_rows(path, None, hub), _TRIED):
            where = f"{path}:{row.line}"
            try:
                return detect(row.parsed(), where)
            except RowError as error:
                unreadable = unreadable or DataError(error.message, where=where, fix=error.fix)
            except DataError as error:
                unknown = unknown or error
        raise (
            unknown or unreadable or DataError("The file has no rows.", where=str(path), fix="give a file with rows")
        )

    def rows(self) -> Iterator[RawRow]:
        """The rows as the source holds them."""
        return _raw_rows(self.path, self.format, self.hub)

    def count(self) -> int | None:
        """How many rows there are; None for a stream, whose end nobody knows."""
        if self.hub:
            return None
        reader = find_reader(self.path)
        if load_format(self.format).read is None and reader.count is not None:
            return reader.count(self.path)
        return sum(1 for _ in self.rows())

    def sha256(self) -> str | None:
        """Hash of the file, or of the names, sizes and times of a folder's files; None for the hub."""
        if self.hub:
            return None
        digest = hashlib.sha256()
        if self.path.is_dir():
            for folder, below, names in os.walk(self.path):
                below.sort()
                for name in sorted(names):
                    found = os.stat(os.path.join(folder, name))
                    shown = os.path.relpath(os.path.join(folder, name), self.path)
                    digest.update(f"{shown}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
            return digest.hexdigest()
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class Choice:
    """Which rows are taken, by their numbers over all sources.

    Attributes:
        among: Whether a number is one of those that are drawn; all are by default.
        end: Where reading ends, as of a stream.
        shard: ``(i, n)`` takes every n-th row from the i-th on, counted from 1.
    """

    among: Callable[[int], bool] | None = None
    end: int | None = None
    shard: tuple[int, int] | None = None

    def rows(self, sources: Sequence[Source]) -> Iterator[tuple[int, int, RawRow]]:
        """The rows that are taken, each with the index of its source and its number."""
        everything = ((origin, row) for origin, source in enumerate(sources) for row in source.rows())
        for number, (origin, row) in enumerate(islice(everything, self.end)):
            if self._takes(number):
                yield origin, number, row

    def _takes(self, number: int) -> bool:
        if self.shard is not None and number % self.shard[1] != self.shard[0] - 1:
            return False
        return self.among is None or self.among(number)


def _raw_rows(path: Path, format: str | None, hub: bool) -> Iterator[RawRow]:
    if hub:
        return hub_rows(str(path).removeprefix("hub:"))
    read = load_format(format).read if format is not None else None
    claims = load_format(format).claims if format is not None else None
    if read is not None and claims is not None and claims(path):
        return read(path)
    return find_reader(path).rows(path)


@dataclass(frozen=True)
class Judge:
    """Decides about rows one by one; picklable, so that several processes can do it.

    Attributes:
        reject: Codes of warnings that rows are rejected for.
        signer: Signs rows, so that near-duplicates can be found.
    """

    sources: tuple[Source, ...]
    check: CheckMedia
    embed: bool = False
    reject: frozenset[str] = frozenset()
    signer: Signer | None = None

    def judge(self, origin: int, number: int, row: RawRow, lengths: Lengths | None = None) -> Accepted | Rejected:
        """Parse and check a row."""
        source = self.sources[origin]
        name = f"{source.path.stem}-{row.index}"
        try:
            value = row.parsed()
            if not isinstance(value, dict):
                raise RowError(
                    "not_an_object", f"The row is {str(value)[:80]!r}, not an object.", fix=_object_fix(value)
                )
            parsed = load_format(source.format).parse(value, name)
            name = parsed.id
            sample = Sample(parsed.id, parsed.turns, f"{source.path}:{row.line}", parsed.extra)
            check_sample(sample)
            return self._accept(source, sample, origin, number, row.split or source.split, lengths)
        except RowError as error:
            wished = error.reason in self.reject
            shown = str(value.get("id", name)) if isinstance(value := _value(row), dict) else name
            shown, said = _encodable(shown), _encodable(error.message)
            return Rejected(str(source.path), row.line, shown, error.reason, said, error.fix, number, wished)

    def _accept(
        self, source: Source, sample: Sample, origin: int, number: int, split: str | None, lengths: Lengths | None
    ) -> Accepted:
        extra = text_of(dict(sample.extra)) if sample.extra else None
        check_unicode(extra or "")
        found = tuple(source.lookup.find(item.uri) for item in sample.media)
        pairs = zip(sample.media, found, strict=True)
        facts = tuple(examine(item, place, self.check, embed=self.embed) for item, place in pairs)
        embedded = sum(len(known.content or b"") for known in facts)
        if embedded > _EMBEDDED_BYTES:
            message = f"The media of the row take {embedded >> 20:,} MiB; {_EMBEDDED_BYTES >> 20:,} can be embedded."
            raise RowError("media_too_large", message, fix="leave out --embed-media")
        warnings = [*warnings_of(sample), *(warning for known in facts for warning in known.warnings)]
        warnings += [("other_ending", place.path) for place in found if place.rule.endswith("other ending")]
        positions = targets = None
        if lengths is not None:
            positions, targets, more = lengths.measure(sample)
            warnings += more
        for code, text in warnings:
            if code in self.reject:
                raise RowError(code, text, fix="use the row: leave out --reject")
        unique = tuple({code: (code, text) for code, text in warnings}.values())
        signature = self.signer.sign(sample, found, facts) if self.signer is not None else None
        return Accepted(sample, found, facts, number, origin, split, positions, targets, unique, signature, extra)


def _value(row: RawRow) -> Any:
    try:
        return row.parsed()
    except RowError:
        return None


def _object_fix(value: Any) -> str:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return "the row is JSON inside a text: write the object itself, not json.dumps of it"
    return "give an object"


def _encodable(text: str) -> str:
    """The text with halves of surrogate pairs written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def text_of(value: Any) -> str:
    """JSON in its one canonical spelling; what JSON has no form for (bytes, times, decimals of tables) as text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=_as_text)


def _as_text(value: Any) -> str:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes | bytearray) else str(value)
