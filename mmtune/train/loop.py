"""The training loop: one for all methods and stages, for one process and for many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from accelerate import Accelerator
from torch import nn

from mmtune.core.errors import Interruption, NumericalError
from mmtune.core.memory import peak_memory_bytes
from mmtune.model.encoding import row_lengths
from mmtune.model.modeling import MMTuneModel
from mmtune.train.checks import MovementCheck
from mmtune.train.counts import count, usable
from mmtune.train.data_setup import Data
from mmtune.train.display import Display
from mmtune.train.feed import MicroBatch
from mmtune.train.guards import Watchdog
from mmtune.train.interrupt import StopRequest
from mmtune.train.metrics import Clock, MetricsFile, Totals
from mmtune.train.optim import Group, epoch_multiplier, rate_multiplier, set_rates
from mmtune.train.recipe import Recipe
from mmtune.train.rejects import Ledger
from mmtune.train.saver import Saver
from mmtune.train.state import Checkpoint, random_state, restore_random
from mmtune.train.step import Stepper
from mmtune.train.team import Team
from mmtune.train.validation import validation_loss

_CHECK_AFTER = 5  # steps until what is trained must have moved


@dataclass(frozen=True)
class Crew:
    """Who takes part in a run besides the model and its data."""

    accelerator: Accelerator
    team: Team
    saver: Saver
    ledger: Ledger
    display: Display
    stop: StopRequest
    watchdog: Watchdog


class Loop:
    """Steps over the data until they are all done.

    A step is ``train.accumulation`` micro-batches, shared among the processes; its loss is the sum of all token losses
    over the number of target tokens of all of them.

    Args:
        wrapped: What is called in place of the model, see ``strategy.spread``.
    """

    def __init__(
        self, recipe: Recipe, model: MMTuneModel, wrapped: nn.Module, data: Data, groups: Sequence[Group], crew: Crew
    ) -> None:
        self._recipe, self._train = recipe, recipe.train
        self._model, self._wrapped, self._data, self._groups = model, wrapped, data, groups
        self._accelerator, self._team, self.saver = crew.accelerator, crew.team, crew.saver
        self._ledger, self._display, self._stop, self._watchdog = crew.ledger, crew.display, crew.stop, crew.watchdog
        folder = str(self.saver.run.folder)
        self._stepper = Stepper(self._train, model, wrapped, groups, self._accelerator, self._team, folder)
        self._optimizer = self._stepper.optimizer
        self._random: dict[str, Any] = {}  # before the step under way, where it may be given up
        self._owes_validation = False  # it was due where the run stopped, which does not wait for it
        self.device = model.device
        self.total_steps = total_steps(recipe, data)
        self.totals = Totals()
        self.seconds_before = 0.0
        self.step = 0

    def resume(self, checkpoint: Checkpoint) -> bool:
        """Go on from a checkpoint; says whether that is exact bit by bit."""
        exact = checkpoint.restore(self._model, self._optimizer, self._team.rank, self._team.size)
        self.step = checkpoint.step
        self.totals = Totals(**checkpoint.state["totals"])
        self.seconds_before = self.totals.seconds
        self.saver.best = checkpoint.state["best"]
        self._owes_validation = checkpoint.state.get("owes_validation", False)
        self._ledger.num_rejected = self.totals.rejected
        if self._accelerator.scaler is not None and checkpoint.state["scaler"]:
            self._accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        return exact

    def run(self, metrics: MetricsFile) -> None:
        """Train until the last step.

        Raises:
            Interruption: A signal asked to stop; a checkpoint is written.
            NumericalError: Non-finite numbers, no target tokens, no usable row at all, or weights that do not move.
            ResourceError: Out of memory, or the disk is full.
            DataError: More unusable rows than ``data.max_bad_fraction`` allows.
        """
        self._wrapped.train()
        roles = self._model.roles()
        perceiving = frozenset(
            {"method", *self._model.method.roles(), *(role for role in roles if role.startswith("encoder"))}
        )
        moved = MovementCheck(self._model, roles, perceiving, self._team)
        first, with_media = self.step, 0
        steps = self._data.feed.steps(first)
        self.saver.start()
        if self._owes_validation:
            self._save(metrics)
        try:
            while self.step < self.total_steps:
                row, saw_media = self._one_step(steps)
                self._watchdog.beat()
                with_media += saw_media
                metrics.write(row)
                self._display.step(row)
                self._track(row)
                if first == 0 and self.step == min(_CHECK_AFTER, self.total_steps):
                    moved(saw_media=with_media >= _CHECK_AFTER - 1)
                if self.saver.is_due(self.step) or self.step == self.total_steps:
                    self._save(metrics)
                if self._asked_to_stop():
                    self._interrupt()
        finally:
            steps.close()
        if not self.totals.samples:
            raise NumericalError(
                f"Nothing was trained on: none of the {self.totals.rejected} rows could be used.",
                where=str(self._ledger.path),
                fix="look at the reasons there; rows that are too long need a larger data.max_length",
            )

    def look_at(self, step: int) -> dict[str, Any]:
        """Do the steps before one, then see what that one gives without learning from it."""
        self._wrapped.train()
        steps = self._data.feed.steps(self.step)
        first = self.step
        try:
            while self.step < step - 1:
                self._one_step(steps)
            micro = next(steps)
        finally:
            steps.close()
        counts, batches = count(micro), usable(micro, self._team)
        losses = self._stepper.gradients(batches, max(1, counts.targets), step)
        loss, norm = float(sum(losses)), self._stepper.clip()
        sound = math.isfinite(loss) and math.isfinite(norm)
        faults = [] if sound else [self._stepper.first_fault(batch) for batch in batches]
        lengths = [length for batch in batches for length in row_lengths(batch)]
        return {
            "step": step,
            "redone_from": first,
            "loss": loss,
            "grad_norm": norm,
            "rows": counts.rows_name,
            "ids": [str(name) for batch in batches for name in batch["ids"]],
            "lengths": lengths,
            "targets": counts.targets,
            "rejected": [row.id for part in micro for row in part.rejected],
            "first_non_finite": next((fault for fault in faults if fault is not None), None),
        }

    def end_tracking(self) -> None:
        """Let trackers finish their files."""
        if self._recipe.run.trackers:
            self._accelerator.end_training()

    def _track(self, row: dict[str, Any]) -> None:
        if self._recipe.run.trackers:
            numbers = {key: row[key] for key in ("loss", "grad_norm", "samples_per_second") if row[key] is not None}
            rates = {f"learning_rate/{role}": rate for role, rate in row["learning_rate"].items()}
            self._accelerator.log({**numbers, **rates}, step=self.step)

    def _asked_to_stop(self) -> bool:
        return self._team.any(self._stop.name is not None)

    def _interrupt(self) -> NoReturn:
        """Save and stop."""
        if self.saver.last_saved != self.step:
            self.saver.checkpoint(self.step, self._optimizer, self._state())
        raise Interruption(
            f"Interrupted by {self._stop.name or 'a signal to another process'} after step {self.step} of "
            f"{self.total_steps}; everything is saved.",
            where=str(self.saver.run.folder),
            fix="run the same command again to go on",
        )

    def _save(self, metrics: MetricsFile) -> None:
        """Validate, keep the best model, write a checkpoint."""
        if self._data.validation is not None:
            self._display.note(f"validating after step {self.step}")
            feed, stop = self._data.validation, self._asked_to_stop
            loss = validation_loss(self._model, feed, self._accelerator, self._team, self._ledger, stop)
            self._owes_validation = loss is None
            if loss is None:
                self._interrupt()
            metrics.write({"step": self.step, "validation_loss": loss})
            self._display.note(f"step {self.step}: validation loss {loss:.4f}")
            self.saver.consider(self.step, loss)
            self._watchdog.beat()
        self.saver.checkpoint(self.step, self._optimizer, self._state())
        self._watchdog.beat()

    def _state(self) -> dict[str, Any]:
        scaler = self._accelerator.scaler
        return {
            "totals": self.totals.to_json(),
            "best": self.saver.best,
            "total_steps": self.total_steps,
            "data": self._data.fingerprint,
            "owes_validation": self._owes_validation,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def _one_step(self, steps: Iterator[list[MicroBatch]]) -> tuple[dict[str, Any], bool]:
        clock = Clock()
        if self._train.accumulation > 1:
            self._random = random_state()
        micro = self._team.together(lambda: next(steps))
        waited = clock.seconds
        rejected = [row for part in micro for row in part.rejected]
        counts = count(micro).over(self._team)
        if counts.rejected:
            self._ledger.add([row for found in self._team.gather(rejected) for row in found], self.totals.samples)
        batches = usable(micro, self._team)
        rates = set_rates(self._optimizer.optimizer, self._groups, self._multiplier())
        loss, norm = None, None
        if counts.samples:
            loss, norm = self._stepper.update(batches, counts.targets, self.step + 1, self._between_batches)
        self.step += 1
        seconds = clock.seconds
        self.totals.add(counts, seconds)
        self.totals.rejected = self._ledger.num_rejected
        row = {
            "step": self.step,
            "epoch": round(self._data.feed.epochs_after(self.step), 4),
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rates,
            "samples": counts.samples,
            "tokens": counts.tokens,
            "targets": counts.targets,
            "rows": counts.rows_name,
            "seconds": round(seconds, 4),
            "samples_per_second": round(counts.samples / seconds, 2),
            "tokens_per_second": round(counts.tokens / seconds, 2),
            "padding": round(1 - counts.tokens / max(1, counts.positions), 4),
            "data_wait": round(waited / seconds, 4),
            "memory_bytes": peak_memory_bytes(self.device),
        }
        return row, counts.with_media > 0

    def _multiplier(self) -> float:
        train = self._train
        if train.warmup_epochs is None:
            return rate_multiplier(train.schedule, self.step, self.total_steps, train.warmup_ratio)
        after = self._data.feed.epochs_after
        epochs = min(train.epochs, after(self.total_steps))
        return epoch_multiplier(train.schedule, after(self.step), epochs, train.warmup_epochs)

    def _between_batches(self) -> None:
        """When a signal came, the step under way is given up and done again later."""
        if self._asked_to_stop():
            self._optimizer.zero_grad(set_to_none=True)
            restore_random(self._random)
            self._interrupt()


def total_steps(recipe: Recipe, data: Data) -> int:
    """Optimizer steps of the whole run."""
    by_epochs = data.feed.total_steps(recipe.train.epochs)
    return min(by_epochs, recipe.train.max_steps or by_epochs)
