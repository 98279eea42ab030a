"""The report of prepared data: what is in it, where it came from and what was left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError
from mmtune.data.dataset import load_samples
from mmtune.data.packing import REJECTED, WARNINGS
from mmtune.data.sample import Sample
from mmtune.report.gallery import show, spread
from mmtune.report.page import render
from mmtune.train.files import write_text

_EXAMPLES = 3  # rows shown for each reason or warning
_LOOKED_AT = 2000  # rows whose lengths and media are counted


def write_data_report(folder: str | Path, *, count: int = 8) -> Path:
    """Write ``report.html`` into a folder of prepared data.

    Args:
        folder: What ``prepare`` wrote.
        count: Rows shown with their pictures.

    Raises:
        DataError: The folder holds no prepared data.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"No prepared data: {error}", where=str(folder), fix="run mmtune prepare-data with this --output"
        ) from error
    samples = load_samples(folder, open_files=1) if manifest.get("rows") else []
    page = render(
        "data.html.j2",
        title=f"Prepared data · {folder.name}",
        manifest=manifest,
        splits={name: part["rows"] for name, part in (manifest.get("splits") or {}).items()},
        counts=_counts(_take(samples, _LOOKED_AT)),
        lengths=manifest.get("lengths"),
        rejected=with_examples(folder / REJECTED, "reason", manifest.get("reasons") or {}),
        warnings=with_examples(folder / WARNINGS, "code", manifest.get("warnings") or {}),
        shown=[show(sample) for sample in _take(samples, count)],
    )
    return write_text(folder / "report.html", page)


def _take(samples: Sequence[Sample], count: int) -> Iterator[Sample]:
    """Rows spread over the data; those whose media cannot be had now (an URL) are passed over."""
    for index in spread(count, len(samples)):
        with suppress(DataError):
            yield samples[index]


def _counts(samples: Iterable[Sample]) -> list[tuple[str, str]]:
    """What an average row looks like. Rows are not kept: media may be embedded in them."""
    turns, media, answers = list[int](), list[int](), list[int]()
    for sample in samples:
        turns.append(len(sample.turns))
        media.append(len(sample.media))
        answers += [len(turn.text.split()) for turn in sample.turns if turn.role == "assistant"]
    if not turns:
        return []
    rows = [("turns", _spread(turns)), ("media", _spread(media)), ("words an answer", _spread(answers))]
    text_only = sum(not number for number in media)
    if text_only:
        rows.append(("rows without media", f"{100 * text_only / len(turns):.0f} %"))
    return rows


def _spread(values: Sequence[int]) -> str:
    ordered = sorted(values) or [0]
    low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return str(low) if low == high else f"{middle} ({low} to {high})"


def with_examples(path: Path, key: str, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each code with its count and a few rows, the most frequent first.

    Args:
        path: List of rows, as ``rejected.jsonl`` and ``warnings.jsonl`` are.
        key: Where an entry of the list has its code.
    """
    examples: dict[str, list[dict[str, Any]]] = {code: [] for code in counts}
    with path.open(encoding="utf-8") if path.is_file() else nullcontext(()) as lines:
        for line in lines:
            row = json.loads(line)
            found = examples.setdefault(str(row.get(key)), [])
            if len(found) < _EXAMPLES:
                found.append(row)
    ordered = sorted(examples, key=lambda code: -counts.get(code, 0))
    return [{"code": code, "count": counts.get(code, 0), "examples": examples[code]} for code in ordered]
