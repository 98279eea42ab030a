"""What is counted of a step, over all processes that share it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch

from mmtune.model.encoding import Batch
from mmtune.model.modeling import IGNORED
from mmtune.train.feed import MicroBatch
from mmtune.train.team import Team


@dataclass(frozen=True)
class Counts:
    """Whole numbers of a step.

    Attributes:
        tokens: Positions that hold text or placeholders; ``positions`` counts padding too.
        with_media: Micro-batches that have media.
        rows: The sum of a number for each row's id: the same for the same rows in any order.
    """

    samples: int = 0
    tokens: int = 0
    positions: int = 0
    targets: int = 0
    with_media: int = 0
    rows: int = 0
    truncated: int = 0
    dropped_turns: int = 0
    rejected: int = 0

    def over(self, team: Team) -> Counts:
        """The sum over all processes."""
        return Counts(*map(int, team.sum(astuple(self))))

    @property
    def rows_name(self) -> str:
        """Eight hex digits that stand for the rows, to see whether two steps had the same."""
        return f"{self.rows % 2**32:08x}"


def count(micro: Sequence[MicroBatch]) -> Counts:
    """Count this process's part of a step."""
    batches = [part.batch for part in micro if part.batch is not None]
    return Counts(
        samples=sum(len(batch["ids"]) for batch in batches),
        tokens=sum(int(batch["attention_mask"].sum()) for batch in batches),
        positions=sum(batch["input_ids"].numel() for batch in batches),
        targets=sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches),
        with_media=sum("media" in batch for batch in batches),
        rows=sum(zlib.crc32(str(name).encode()) for batch in batches for name in batch["ids"]),
        truncated=sum(part.truncated for part in micro),
        dropped_turns=sum(part.dropped_turns for part in micro),
        rejected=sum(len(part.rejected) for part in micro),
    )


def idle_batch() -> Batch:
    """What a process without rows computes, so that the others need not wait for it: two tokens, nothing to learn."""
    ids = torch.zeros(1, 2, dtype=torch.long)
    return Batch(ids=[], input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.full_like(ids, IGNORED))


def usable(micro: Sequence[MicroBatch], team: Team) -> list[Batch]:
    """The batches to compute: a process of several has as many as every other, idle ones among them."""
    if team.size == 1:
        return [part.batch for part in micro if part.batch is not None]
    return [part.batch or idle_batch() for part in micro]
