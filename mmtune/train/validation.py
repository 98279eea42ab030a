"""The loss on data that is not trained on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator

from mmtune.core.errors import NumericalError
from mmtune.model.batches import to_device
from mmtune.model.modeling import MMTuneModel
from mmtune.train.counts import count, usable
from mmtune.train.feed import Feed
from mmtune.train.rejects import Ledger
from mmtune.train.state import random_state, restore_random
from mmtune.train.team import Team


def validation_loss(
    model: MMTuneModel, feed: Feed, accelerator: Accelerator, team: Team, ledger: Ledger, stop: Callable[[], bool]
) -> float | None:
    """Mean loss per target token over one pass; the training's random states are left as they were.

    Processes share the rows; each calls the model as often as every other.

    Args:
        stop: Asked before every step, by all processes; once it says so, the pass is given up.

    Returns:
        None when it was given up.

    Raises:
        NumericalError: No target tokens at all.
        DataError: More unusable rows than the budget allows.
    """
    states, total, targets = random_state(), 0.0, 0.0
    model.eval()
    try:
        with torch.no_grad():
            steps = feed.steps(0)
            for _ in range(feed.steps_per_epoch):
                if stop():
                    return None
                micro = team.together(lambda: next(steps))
                for batch in usable(micro, team):
                    inputs = {key: to_device(value, model.device) for key, value in batch.items() if key != "ids"}
                    with accelerator.autocast():
                        total += float(model(**inputs, num_items_in_batch=1, target_logits_only=True).loss)
                targets += count(micro).targets
                rejected = [
                    row for found in team.gather([row for part in micro for row in part.rejected]) for row in found
                ]
                ledger.add(rejected, 0)
    finally:
        model.train()
        restore_random(states)
    total, targets = team.sum([total, targets])
    if targets == 0:
        raise NumericalError(
            "The validation data has no target token.", where="data.validation", fix="check its answers"
        )
    return total / targets
