"""Numbers about prepared rows, read from the shards a column at a time: by source, as histograms, and the extremes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmtune.core.errors import DataError

_MOST_ROWS = 50_000  # that are looked at; of larger data, every n-th group of rows
_BINS = 20
_EXTREMES = 5


@dataclass
class Found:
    """What was seen of the rows."""

    rows: int = 0
    values: dict[str, list[int]] = field(default_factory=dict)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    extremes: dict[str, list[tuple[float, str, str]]] = field(default_factory=dict)
    answers: Counter[bytes] = field(default_factory=Counter)
    media: Counter[str] = field(default_factory=Counter)
    texts: dict[bytes, str] = field(default_factory=dict)


def look_at(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of a prepared folder: ``looked_at``, ``sources``, ``histograms``, ``outliers``."""
    found = Found()
    for row in _rows(folder, manifest):
        _count(row, found)
    outliers = {
        name: [
            {"value": abs(value), "id": row_id, "source": source} for value, row_id, source in sorted(best)[:_EXTREMES]
        ]
        for name, best in found.extremes.items()
    }
    outliers["most repeated answer"] = [
        {"value": number, "id": found.texts[key][:120], "source": ""}
        for key, number in found.answers.most_common(_EXTREMES) if number > 1
    ]  # fmt: skip
    outliers["most repeated medium"] = [
        {"value": number, "id": name, "source": ""} for name, number in found.media.most_common(_EXTREMES) if number > 1
    ]
    return {
        "looked_at": found.rows,
        "sources": [{"source": name, **_summary(counts)} for name, counts in found.sources.items()],
        "histograms": {name: histogram(values) for name, values in found.values.items() if values},
        "outliers": {name: rows for name, rows in outliers.items() if rows},
    }


def _rows(folder: Path, manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    columns = ["id", "source", "turns", "media", "positions", "targets"]
    stride = max(1, math.ceil(manifest["rows"] / _MOST_ROWS))
    number = 0
    for split in manifest["splits"].values():
        for name in split["files"]:
            try:
                with pq.ParquetFile(folder / name) as table:
                    for group in range(table.num_row_groups):
                        number += 1
                        if (number - 1) % stride == 0:
                            yield from _light(table, group, columns)
            except (OSError, ValueError) as error:  # Arrow's own errors are among them
                message = f"A shard of the prepared data is damaged: {error}"
                raise DataError(message, where=str(folder / name), fix="prepare the data again") from error


def _light(table: pq.ParquetFile, group: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a group, without the bytes of embedded media."""
    leaves = [f"media.list.element.{name}" for name in ("uri", "size", "sha256")]
    rows = table.read_row_group(
        group, columns=[name for name in columns if name != "media"] + leaves, use_threads=False
    )
    yield from rows.to_pylist()


def _count(row: Mapping[str, Any], found: Found) -> None:
    found.rows += 1
    path = row["source"].rpartition(":")[0]
    texts = [(turn["role"], "".join(part["text"] or "" for part in turn["parts"])) for turn in row["turns"]]
    answers = [text for role, text in texts if role == "assistant"]
    sizes = [item["size"] for item in row["media"] if item["size"] is not None]
    numbers = {
        "turns": len(texts),
        "media": len(row["media"]),
        "words of answers": sum(len(text.split()) for text in answers),
        "words of questions": sum(len(text.split()) for role, text in texts if role == "user"),
    }
    if row["positions"] is not None:
        numbers["positions"] = row["positions"]
        _extreme(found, "least trained share, in percent", round(100 * row["targets"] / row["positions"], 1), row)
        _extreme(found, "longest, in positions", -row["positions"], row)
    else:
        _extreme(found, "longest, in characters", -sum(len(text) for _, text in texts), row)
    if sizes:
        numbers["kilobytes of media"] = math.ceil(sum(sizes) / 1000)
        _extreme(found, "largest media, in bytes", -sum(sizes), row)
    for name, number in numbers.items():
        found.values.setdefault(name, []).append(number)
    source = found.sources.setdefault(path, Counter())
    source.update(numbers)
    source.update({"rows": 1, "without media": int(not row["media"]), "trained": row["targets"] or 0})
    for text in answers:
        key = hashlib.blake2b(text.encode(), digest_size=8).digest()
        found.answers[key] += 1
        found.texts.setdefault(key, text)
    found.media.update({item["uri"] or item["sha256"] or "?" for item in row["media"]})


def _extreme(found: Found, name: str, value: float, row: Mapping[str, Any]) -> None:
    """Keep the rows with the smallest values."""
    best = found.extremes.setdefault(name, [])
    best.append((value, row["id"], row["source"]))
    if len(best) > 100 * _EXTREMES:
        best[:] = sorted(best)[:_EXTREMES]


def _summary(counts: Counter[str]) -> dict[str, Any]:
    rows = counts["rows"]
    found: dict[str, Any] = {
        "rows": rows,
        "without_media": counts["without media"],
        "turns": round(counts["turns"] / rows, 2),
        "media": round(counts["media"] / rows, 2),
        "answer_words": round(counts["words of answers"] / rows, 1),
    }
    if counts["positions"]:
        found |= {
            "positions": round(counts["positions"] / rows, 1),
            "trained_percent": round(100 * counts["trained"] / counts["positions"], 2),
        }
    return found


def histogram(values: Sequence[int]) -> dict[str, Any]:
    """Numbers in bins of equal width: ``low``, ``high``, ``median``, ``counts``; a bin a number when they are few."""
    low, high = min(values), max(values)
    bins = min(_BINS, high - low + 1)
    width = (high - low + 1) / bins
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / width))] += 1
    return {"low": low, "high": high, "median": sorted(values)[len(values) // 2], "counts": counts}
