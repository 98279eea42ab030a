"""The training loop: one for all methods and stages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mmtune.core.errors import Interruption, NumericalError, ResourceError
from mmtune.model.batches import out_of_memory, to_device
from mmtune.model.encoding import Batch
from mmtune.model.modeling import MMTuneModel
from mmtune.train.checks import MovementCheck
from mmtune.train.data_setup import Data
from mmtune.train.display import Display
from mmtune.train.feed import MicroBatch
from mmtune.train.interrupt import StopRequest
from mmtune.train.metrics import Clock, MetricsFile, Totals
from mmtune.train.optim import Group, make_optimizer, rate_multiplier, set_rates
from mmtune.train.recipe import Recipe
from mmtune.train.rejects import Ledger
from mmtune.train.saver import Saver
from mmtune.train.state import Checkpoint
from mmtune.train.validation import validation_loss

_CHECK_AFTER = 5  # steps until what is trained must have moved
_MOST_OVERFLOWS = 50  # fp16 steps in a row that may overflow while the scale is found
_SHOWN_IDS = 16


class Loop:
    """Steps over the data until they are all done.

    A step is ``train.accumulation`` micro-batches; its loss is the sum of all token losses over the number of target
    tokens of all of them.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: MMTuneModel,
        data: Data,
        groups: Sequence[Group],
        accelerator: Accelerator,
        saver: Saver,
        ledger: Ledger,
        display: Display,
        stop: StopRequest,
    ) -> None:
        self._recipe, self._train = recipe, recipe.train
        self._model, self._data, self._groups = model, data, groups
        self._accelerator, self.saver, self._ledger = accelerator, saver, ledger
        self._display, self._stop = display, stop
        self._optimizer = accelerator.prepare_optimizer(make_optimizer(groups, self._train.betas))
        self._parameters = [parameter for group in groups for parameter in group.parameters]
        self._overflows = 0
        self.device = model.device
        self.total_steps = total_steps(recipe, data)
        self.totals = Totals()
        self.seconds_before = 0.0
        self.step = 0

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        checkpoint.restore(self._model, self._optimizer)
        self.step = checkpoint.step
        self.totals = Totals(**checkpoint.state["totals"])
        self.seconds_before = self.totals.seconds
        self.saver.best = checkpoint.state["best"]
        self._ledger.num_rejected = self.totals.rejected
        if self._accelerator.scaler is not None and checkpoint.state["scaler"]:
            self._accelerator.scaler.load_state_dict(checkpoint.state["scaler"])

    def run(self, metrics: MetricsFile) -> None:
        """Train until the last step.

        Raises:
            Interruption: A signal asked to stop; a checkpoint is written.
            NumericalError: Non-finite numbers, no target tokens, or weights that do not move.
            ResourceError: Out of memory, or the disk is full.
            DataError: More unusable rows than ``data.max_bad_fraction`` allows.
        """
        self._model.train()
        roles = self._model.roles()
        perceiving = frozenset(
            {"method", *self._model.method.roles(), *(role for role in roles if role.startswith("encoder"))}
        )
        moved = MovementCheck(self._model, roles, perceiving)
        first, with_media = self.step, 0
        steps = self._data.feed.steps(first)
        self.saver.start()
        try:
            while self.step < self.total_steps:
                row, saw_media = self._one_step(steps)
                with_media += saw_media
                metrics.write(row)
                self._display.step(row)
                self._track(row)
                if first == 0 and self.step == _CHECK_AFTER:
                    moved(saw_media=with_media >= _CHECK_AFTER - 1)
                self._between_steps(metrics)
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
            self._accelerator.log(numbers, step=self.step)

    def _between_steps(self, metrics: MetricsFile) -> None:
        if self._stop.name is not None:
            self.saver.checkpoint(self.step, self._optimizer, self._state())
            raise Interruption(
                f"Interrupted by {self._stop.name} after step {self.step} of {self.total_steps}; everything is saved.",
                where=str(self.saver.run.folder),
                fix="run the same command again to go on",
            )
        if self.saver.is_due(self.step):
            self._save(metrics)

    def _save(self, metrics: MetricsFile) -> None:
        """Validate, keep the best model, write a checkpoint."""
        if self._data.validation is not None:
            self._display.note(f"validating after step {self.step}")
            loss = validation_loss(self._model, self._data.validation, self._accelerator, self._ledger)
            metrics.write({"step": self.step, "validation_loss": loss})
            self._display.note(f"step {self.step}: validation loss {loss:.4f}")
            self.saver.consider(self.step, loss)
        self.saver.checkpoint(self.step, self._optimizer, self._state())

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
        micro = next(steps)
        for part in micro:
            self._ledger.add(part.rejected, self.totals.samples)
            self.totals.truncated += part.truncated
            self.totals.dropped_turns += part.dropped_turns
        batches = [part.batch for part in micro if part.batch is not None]
        rates = set_rates(self._optimizer.optimizer, self._groups, self._multiplier())
        loss, norm, targets = self._update(batches) if batches else (None, None, 0)
        self.step += 1
        samples = sum(len(batch["ids"]) for batch in batches)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        seconds = clock.seconds
        self.totals.samples += samples
        self.totals.tokens += tokens
        self.totals.targets += targets
        self.totals.rejected = self._ledger.num_rejected
        self.totals.seconds += seconds
        row = {
            "step": self.step,
            "epoch": round(self.step / self._data.feed.steps_per_epoch, 4),
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rates,
            "samples": samples,
            "tokens": tokens,
            "targets": targets,
            "seconds": round(seconds, 4),
            "samples_per_second": round(samples / seconds, 2),
        }
        return row, any("media" in batch for batch in batches)

    def _multiplier(self) -> float:
        return rate_multiplier(self._train.schedule, self.step, self.total_steps, self._train.warmup_ratio)

    def _update(self, batches: Sequence[Batch]) -> tuple[float, float | None, int]:
        targets = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        if targets == 0:
            raise NumericalError(
                "The step has no target token.", where=_ids(batches), fix="check the answers of these rows"
            )
        losses = [self._forward_backward(batch, targets) for batch in batches]
        loss = float(sum(losses, torch.zeros((), device=self.device)))
        if not math.isfinite(loss):
            bad = [batch for batch, part in zip(batches, losses, strict=True) if not torch.isfinite(part)]
            raise NumericalError(
                f"The loss of step {self.step + 1} is {loss}; nothing was learnt from it.",
                where=_ids(bad),
                fix="lower train.learning_rate, use train.precision=fp32, or look at these rows",
            )
        norm = float(self._accelerator.clip_grad_norm_(self._parameters, self._train.max_grad_norm or math.inf))
        self._check_norm(norm, batches)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss, norm if math.isfinite(norm) else None, targets

    def _forward_backward(self, batch: Batch, targets: int) -> Tensor:
        inputs = {key: to_device(value, self.device) for key, value in batch.items() if key != "ids"}
        try:
            with self._accelerator.autocast():
                loss: Tensor = self._model(**inputs, num_items_in_batch=targets, target_logits_only=True).loss
            self._accelerator.backward(loss)
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise _memory_error(batch, self.step + 1, self._train.batch_size, self._train.accumulation) from error
            raise
        return loss.detach()

    def _check_norm(self, norm: float, batches: Sequence[Batch]) -> None:
        if math.isfinite(norm):
            self._overflows = 0
            return
        self._overflows += 1
        if self._accelerator.scaler is not None and self._overflows <= _MOST_OVERFLOWS:
            return  # the scale is too large still; the optimizer skips this step by itself
        raise NumericalError(
            f"The gradient of step {self.step + 1} is {norm}; nothing was learnt from it.",
            where=_ids(batches),
            fix="lower train.learning_rate, use train.precision=fp32, or look at these rows",
        )


def total_steps(recipe: Recipe, data: Data) -> int:
    """Optimizer steps of the whole run."""
    by_epochs = math.ceil(recipe.train.epochs * data.feed.steps_per_epoch)
    return min(by_epochs, recipe.train.max_steps or by_epochs)


def _ids(batches: Sequence[Batch]) -> str:
    ids = [str(name) for batch in batches for name in batch["ids"]]
    more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
    return "rows " + ", ".join(ids[:_SHOWN_IDS]) + more


def _memory_error(batch: Batch, step: int, batch_size: int, accumulation: int) -> ResourceError:
    rows, length = batch["input_ids"].shape
    lengths = batch["attention_mask"].sum(-1).tolist()
    smaller = max(1, batch_size // 2)
    if batch_size > 1:
        fix = f"--set train.batch_size={smaller} --set train.accumulation={accumulation * -(-batch_size // smaller)}"
    else:
        fix = "--set data.max_length=1024"
    return ResourceError(
        f"Out of memory at step {step} with {rows} rows of up to {length} tokens (lengths {lengths[:_SHOWN_IDS]}).",
        where=_ids([batch]),
        fix=f"{fix}, or --set train.gradient_checkpointing=true",
    )
