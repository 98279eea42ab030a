"""How long the rows of a mixture are, measured once and kept on disk: no medium is opened for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample
from mmtune.model.kinds import with_own_names
from mmtune.model.processing import MMTuneProcessor
from mmtune.train.batching import RowLengths
from mmtune.train.feed import Mixture
from mmtune.train.files import replacing, writing

_FORMAT = 1
_COLUMNS = 4


def measure_rows(
    mixture: Mixture,
    fingerprints: Sequence[str],
    processor: MMTuneProcessor,
    options: Mapping[str, Any],
    cache: Path | None = None,
) -> RowLengths:
    """Lengths of all rows in the order of ``mixture.row``.

    A row that the processor refuses counts as one position: it is left out when its turn comes.

    Args:
        fingerprints: Of the mixture's tables; with the processor and the options they name the kept file.
        options: Those of ``processor.encode``.
        cache: Folder of kept measurements; nothing is kept without one.
    """
    kept = None if cache is None else cache / "lengths" / f"{_key(mixture, fingerprints, processor, options)}.npy"
    table = _read(kept, len(mixture))
    if table is None:
        rows = (_measure(mixture.row(index), processor, options) for index in range(len(mixture)))
        flat = np.fromiter((value for row in rows for value in row), dtype=np.int64, count=_COLUMNS * len(mixture))
        table = flat.reshape(-1, _COLUMNS)
        if kept is not None:
            _write(kept, table)
    return RowLengths(table[:, 0], table[:, 1], table[:, 2], table[:, 3])


def _measure(sample: Sample, processor: MMTuneProcessor, options: Mapping[str, Any]) -> tuple[int, int, int, int]:
    words = sum(len(turn.text.split()) for turn in sample.turns if turn.role != "system") + len(sample.media)
    signed = -max(words, 1) if sample.media else max(words, 1)  # the original counts a marker as a word
    limit = options.get("max_length")
    try:
        sample = with_own_names(sample, processor.modalities)
        measured = processor.measure(sample, template=options.get("template"))
    except DataError:
        return 1, 0, 0, signed
    media = sum(processor.modalities[item.modality].num_positions for item in sample.media)
    length = len(measured.input_ids)
    if limit is not None and length > limit:
        if options.get("overlong") != "truncate-text":
            return 1, 0, 0, signed
        return limit, sum(label >= 0 for label in measured.labels[:limit]), media, signed
    return length, measured.num_targets, media, signed


def _key(mixture: Mixture, fingerprints: Sequence[str], processor: MMTuneProcessor, options: Mapping[str, Any]) -> str:
    """A name that changes with everything a length depends on."""
    tokenizer = processor.tokenizer
    content = {
        "format": _FORMAT,
        "rows": len(mixture),
        "data": list(fingerprints),
        "options": dict(options),
        "template": processor.template,
        "chat_template": tokenizer.chat_template,
        "tokenizer": sorted(tokenizer.get_vocab().items()),
        "added": sorted(str(token) for token in tokenizer.all_special_tokens),
        "slots": dict(processor.slots),
        "modalities": {name: modality.num_positions for name, modality in processor.modalities.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _read(path: Path | None, rows: int) -> NDArray[np.int64] | None:
    if path is None:
        return None
    try:
        table: NDArray[np.int64] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there yet, or half of it: measured again
        return None
    return table if table.shape == (rows, _COLUMNS) else None


def _write(path: Path, table: NDArray[np.int64]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            np.save(file, table, allow_pickle=False)
