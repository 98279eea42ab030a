"""How long rows become for a model: positions, and the share of them that is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mmtune.core.errors import DataError
from mmtune.data.diskarray import Numbers
from mmtune.data.messages import RowError
from mmtune.data.sample import Sample

_SHARES = (5, 50, 95, 99)


class Lengths:
    """Positions and trained tokens of rows, as a checkpoint's processor writes them. Media are not opened.

    Args:
        processor: An ``MMTuneProcessor``.
        limit: Most positions that its language model takes, if known.
    """

    def __init__(self, processor: Any, limit: int | None) -> None:
        self.processor, self.limit = processor, limit

    @classmethod
    def of(cls, model: str | None) -> Lengths | None:
        """For the processor of a checkpoint; None without one.

        Raises:
            CheckpointError: No processor there.
            ResourceError: The hub is out of reach.
        """
        if model is None:
            return None
        from transformers import AutoConfig

        from mmtune.model.build import checkpoint_folder
        from mmtune.model.checkpoint import read_config
        from mmtune.model.processing import MMTuneProcessor
        from mmtune.model.sources import resolve_source

        folder = checkpoint_folder(model)
        processor = MMTuneProcessor.from_pretrained(folder)
        base = resolve_source(read_config(folder).base["source"], "llm", folder)
        config = AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config()
        return cls(processor, getattr(config, "max_position_embeddings", None))

    def measure(self, sample: Sample) -> tuple[int, int, list[tuple[str, str]]]:
        """Positions of a row, how many of them are trained, and a warning when they are too many.

        Raises:
            RowError: ``nothing_to_train``, ``media_not_taken`` or ``not_encodable``.
        """
        from mmtune.model.kinds import modality_of

        taken = self.processor.modalities
        others = sorted({item.modality for item in sample.media if modality_of(item.modality, taken) is None})
        if others:
            raise RowError(
                "media_not_taken",
                f"The model does not take {', '.join(others)}; it takes {', '.join(sorted(taken)) or 'text only'}.",
                fix="leave the row out, or prepare for another model",
            )
        try:
            measured = self.processor.measure(sample)
        except DataError as error:
            if error.code == "nothing_to_train":
                raise RowError("nothing_to_train", error.message, fix=error.fix) from error
            raise RowError("not_encodable", error.message, fix=error.fix) from error
        length = len(measured.input_ids)
        if self.limit is not None and length > self.limit:
            text = f"The row has {length} positions, the model takes {self.limit}."
            return length, measured.num_targets, [("too_long", text)]
        return length, measured.num_targets, []


def summarise(
    measured: Iterable[tuple[Numbers, Numbers, Numbers]], names: Mapping[int, str], limit: int | None
) -> dict[str, Any]:
    """``limit``, ``over_limit``, quantiles of ``positions``, ``trained_fraction``, and the latter by source.

    Args:
        measured: Positions, targets and sources of rows, ``[n]`` each, in pieces.
    """
    numbers = np.zeros(1, np.int64)  # of rows, by their positions
    rows, total, trained = (np.zeros(len(names), np.int64) for _ in range(3))  # by source
    for positions, targets, origins in measured:
        more = np.bincount(positions, minlength=len(numbers))
        more[: len(numbers)] += numbers
        numbers = more
        np.add.at(rows, origins, 1)
        np.add.at(total, origins, positions)
        np.add.at(trained, origins, targets)
    everything, ends = int(total.sum()), np.cumsum(numbers)
    found: dict[str, Any] = {
        "rows": int(ends[-1]),
        "limit": limit,
        "over_limit": int(numbers[limit + 1 :].sum()) if limit else 0,
        "trained_fraction": round(int(trained.sum()) / everything, 6) if everything else 0.0,
        "sources": {
            name: {
                "rows": int(rows[origin]),
                "mean_positions": round(int(total[origin]) / int(rows[origin]), 2),
                "trained_fraction": round(int(trained[origin]) / int(total[origin]), 6),
            }
            for origin, name in names.items()
            if total[origin]
        },
    }
    if count := found["rows"]:
        places = {f"p{share}": min(count - 1, share * count // 100) for share in _SHARES}
        found["positions"] = {
            "mean": round(everything / count, 2),
            **{name: int(np.searchsorted(ends, place, side="right")) for name, place in places.items()},
            "max": int(np.flatnonzero(numbers)[-1]),
        }
    return found
