"""The training loop: one for all methods and stages, for one process and for many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmtune.core.errors import Interruption, MMTuneError, NumericalError
from mmtune.model.batches import out_of_memory, to_device
from mmtune.model.encoding import Batch
from mmtune.model.modeling import MMTuneModel
from mmtune.train.checks import MovementCheck
from mmtune.train.counts import count, usable
from mmtune.train.data_setup import Data
from mmtune.train.display import Display
from mmtune.train.feed import MicroBatch
from mmtune.train.guards import (
    Watchdog,
    first_non_finite,
    first_non_finite_gradient,
    memory_error,
    non_finite_error,
    shown_ids,
)
from mmtune.train.interrupt import StopRequest
from mmtune.train.metrics import Clock, MetricsFile, Totals
from mmtune.train.optim import Group, epoch_multiplier, make_optimizer, rate_multiplier, set_rates
from mmtune.train.recipe import Recipe
from mmtune.train.rejects import Ledger
from mmtune.train.saver import Saver
from mmtune.train.state import Checkpoint, random_state, restore_random
from mmtune.train.strategy import unsynced
from mmtune.train.team import Team
from mmtune.train.validation import validation_loss

_CHECK_AFTER = 5  # steps until what is trained must have moved
_MOST_OVERFLOWS = 50  # fp16 steps in a row that may overflow while the scale is found


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
        self._optimizer = self._accelerator.prepare_optimizer(make_optimizer(groups, self._train.betas))
        self._parameters = [parameter for group in groups for parameter in group.parameters]
        self._overflows = 0
        self._random: dict[str, Any] = {}  # before the step under way, where it may be given up
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
        self._ledger.num_rejected = self.totals.rejected
        if self._accelerator.scaler is not None and checkpoint.state["scaler"]:
            self._accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        return exact

    def run(self, metrics: MetricsFile) -> None:
        """Train until the last step.

        Raises:
            Interruption: A signal asked to stop; a checkpoint is written.
            NumericalError: Non-finite numbers, no target tokens, or weights that do not move.
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
        try:
            while self.step < self.total_steps:
                row, saw_media = self._one_step(steps)
                self._watchdog.beat()
                with_media += saw_media
                metrics.write(row)
                self._display.step(row)
                self._track(row)
                if first == 0 and self.step == _CHECK_AFTER:
                    moved(saw_media=with_media >= _CHECK_AFTER - 1)
                if self._asked_to_stop():
                    self._interrupt()
                if self.saver.is_due(self.step):
                    self._save(metrics)
        finally:
            steps.close()
        if first == 0 and self.step < _CHECK_AFTER:
            moved(saw_media=False)
        if first < self.step and self.saver.last_saved != self.step:
            self._save(metrics)

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
            loss = validation_loss(self._model, self._data.validation, self._accelerator, self._team, self._ledger)
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
        loss, norm = self._update(batches, counts.targets) if counts.samples else (None, None)
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
        }
        return row, counts.with_media > 0

    def _multiplier(self) -> float:
        train = self._train
        if train.warmup_epochs is None:
            return rate_multiplier(train.schedule, self.step, self.total_steps, train.warmup_ratio)
        after = self._data.feed.epochs_after
        epochs = min(train.epochs, after(self.total_steps))
        return epoch_multiplier(train.schedule, after(self.step), epochs, train.warmup_epochs)

    def _update(self, batches: Sequence[Batch], targets: int) -> tuple[float, float | None]:
        if targets == 0:
            raise NumericalError(
                "The step has no target token.", where=shown_ids(batches), fix="check the answers of these rows"
            )
        losses: list[Tensor] = []
        for index, batch in enumerate(batches):
            if index and self._asked_to_stop():  # the step under way is given up and done again later
                self._optimizer.zero_grad(set_to_none=True)
                restore_random(self._random)
                self._interrupt()
            with unsynced(self._wrapped) if index < len(batches) - 1 else nullcontext():
                losses.append(self._forward_backward(batch, targets))
        loss = self._team.sum([float(sum(losses, torch.zeros((), device=self.device)))])[0]
        if not math.isfinite(loss):
            bad = [batch for batch, part in zip(batches, losses, strict=True) if not torch.isfinite(part)]
            raise self._non_finite("loss", loss, bad, batches)
        norm = float(self._accelerator.clip_grad_norm_(self._parameters, self._train.max_grad_norm or math.inf))
        self._check_norm(norm, batches)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss, norm if math.isfinite(norm) else None

    def _forward_backward(self, batch: Batch, targets: int) -> Tensor:
        try:
            with self._accelerator.autocast():
                output = self._wrapped(**self._inputs(batch), num_items_in_batch=targets, target_logits_only=True)
            loss: Tensor = output.loss
            self._accelerator.backward(loss * self._team.size)  # gradients are averaged over the processes
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise memory_error(batch, self.step + 1, self._train.batch_size, self._train.accumulation) from error
            raise
        return loss.detach()

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        return {key: to_device(value, self.device) for key, value in batch.items() if key != "ids"}

    def _check_norm(self, norm: float, batches: Sequence[Batch]) -> None:
        if math.isfinite(norm):
            self._overflows = 0
            return
        self._overflows += 1
        if self._accelerator.scaler is not None and self._overflows <= _MOST_OVERFLOWS:
            return  # the scale is too large still; the optimizer skips this step by itself
        raise self._non_finite("gradient", norm, batches, batches)

    def _non_finite(self, what: str, value: float, bad: Sequence[Batch], batches: Sequence[Batch]) -> MMTuneError:
        """Run a bad batch again, all processes together, and see where it begins."""
        suspect = next(iter(bad), batches[0])

        def again() -> None:
            with self._accelerator.autocast():
                self._model(**self._inputs(suspect), num_items_in_batch=1)

        module = first_non_finite(self._model, again) or first_non_finite_gradient(self._model)
        named = [batch for found in self._team.gather([{"ids": batch["ids"]} for batch in bad]) for batch in found]
        modules = [found for found in self._team.gather(module) if found is not None]
        replay = f"mmtune finetune --replay {self.saver.run.folder} --step {self.step + 1}"
        return non_finite_error(what, self.step + 1, value, shown_ids(named), next(iter(modules), None), replay)


def total_steps(recipe: Recipe, data: Data) -> int:
    """Optimizer steps of the whole run."""
    by_epochs = data.feed.total_steps(recipe.train.epochs)
    return min(by_epochs, recipe.train.max_steps or by_epochs)
