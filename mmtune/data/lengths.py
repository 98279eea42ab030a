"""How long rows become for a model: positions, and the share of them that is trained."""

from __future__ import annotations

from array import array
from typing import Any

from mmtune.core.errors import DataError
from mmtune.data.sample import Sample


class Lengths:
    """Positions and trained tokens of rows, as a checkpoint's processor writes them. Media are not opened.

    Args:
        processor: An ``MMTuneProcessor``.
        limit: Most positions that its language model takes, if known.
    """

    def __init__(self, processor: Any, limit: int | None) -> None:
        self.processor, self.limit = processor, limit
        self._positions, self._targets = array("l"), array("l")
        self._unusable: dict[str, int] = {}

    @classmethod
    def of(cls, model: str | None) -> Lengths | None:
        """For the processor of a checkpoint; None without one.

        Raises:
            CheckpointError: No processor there.
        """
        if model is None:
            return None
        from transformers import AutoConfig

        from mmtune.model.checkpoint import read_config
        from mmtune.model.processing import MMTuneProcessor
        from mmtune.model.sources import resolve_source

        folder = resolve_source(model, "adapter")
        processor = MMTuneProcessor.from_pretrained(folder)
        base = resolve_source(read_config(folder).base["source"], "llm", folder)
        config = AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config()
        return cls(processor, getattr(config, "max_position_embeddings", None))

    def add(self, sample: Sample) -> None:
        """Count a row; one that the processor refuses is counted apart."""
        try:
            measured = self.processor.measure(sample)
        except DataError as error:
            self._unusable[error.message] = self._unusable.get(error.message, 0) + 1
            return
        self._positions.append(len(measured.input_ids))
        self._targets.append(measured.num_targets)

    def summary(self) -> dict[str, Any]:
        """``limit``, ``over_limit``, quantiles of ``positions``, ``trained_fraction`` and what is ``unusable``."""
        ordered = sorted(self._positions)
        total = sum(ordered)
        found: dict[str, Any] = {
            "rows": len(ordered),
            "limit": self.limit,
            "over_limit": sum(length > self.limit for length in ordered) if self.limit else 0,
            "trained_fraction": round(sum(self._targets) / total, 6) if total else 0.0,
            "unusable": dict(sorted(self._unusable.items())[:20]),
        }
        if ordered:
            found["positions"] = {
                "mean": round(total / len(ordered), 2),
                **{
                    f"p{share}": ordered[min(len(ordered) - 1, share * len(ordered) // 100)]
                    for share in (5, 50, 95, 99)
                },
                "max": ordered[-1],
            }
        return found
