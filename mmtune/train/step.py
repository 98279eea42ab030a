"""One optimizer step: gradients of its micro-batches, guarded, then the update; for one process and for many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmtune.core.errors import MMTuneError, NumericalError
from mmtune.model.batches import out_of_memory, to_device
from mmtune.model.encoding import Batch
from mmtune.model.modeling import MMTuneModel
from mmtune.train.guards import (
    first_non_finite,
    first_non_finite_gradient,
    memory_error,
    non_finite_error,
    shown_ids,
)
from mmtune.train.optim import Group, make_optimizer
from mmtune.train.schema import TrainRecipe
from mmtune.train.strategy import unsynced
from mmtune.train.team import Team
from mmtune.train.zero import ZeroModel

_MOST_OVERFLOWS = 50  # fp16 steps in a row that may overflow while the scale is found


class Stepper:
    """Gradients and updates of a model.

    Args:
        wrapped: What is called in place of the model, see ``strategy.spread``.
        run: What ``--replay`` calls the run.
    """

    def __init__(
        self,
        train: TrainRecipe,
        model: MMTuneModel,
        wrapped: nn.Module,
        groups: Sequence[Group],
        accelerator: Accelerator,
        team: Team,
        run: str,
    ) -> None:
        self._train, self._model, self._wrapped = train, model, wrapped
        self._accelerator, self._team, self._run = accelerator, team, run
        self.optimizer: Any = (
            wrapped.optimizer
            if isinstance(wrapped, ZeroModel)
            else accelerator.prepare_optimizer(make_optimizer(groups, train.betas, train.optimizer))
        )
        self._parameters = [parameter for group in groups for parameter in group.parameters]
        self._overflows = 0
        self._device = model.device

    def update(
        self, batches: Sequence[Batch], targets: int, number: int, between: Callable[[], None] = lambda: None
    ) -> tuple[float, float | None]:
        """Learn from a step.

        Args:
            batches: This process's micro-batches, as many as every other has.
            targets: Target tokens of the whole step, over all processes.
            number: Of the step, from 1, for messages.
            between: Called before every micro-batch but the first.

        Returns:
            Loss per target token and norm of the gradient, None where an fp16 step overflowed and was skipped.

        Raises:
            NumericalError: No target tokens, or numbers that are not finite.
            ResourceError: Out of memory.
        """
        if targets == 0:
            rows = shown_ids(self._team.joined([Batch(ids=batch["ids"]) for batch in batches]))
            raise NumericalError("The step has no target token.", where=rows, fix="check the answers of these rows")
        losses = self.gradients(batches, targets, number, between)
        loss = self._team.sum([float(sum(losses, torch.zeros((), device=self._device)))])[0]
        if not math.isfinite(loss):
            bad = [batch for batch, part in zip(batches, losses, strict=True) if not torch.isfinite(part)]
            raise self._non_finite("loss", loss, bad, batches, number)
        norm = self._update(batches, number)
        return loss, norm if math.isfinite(norm) else None

    def gradients(
        self, batches: Sequence[Batch], targets: int, number: int, between: Callable[[], None] = lambda: None
    ) -> list[Tensor]:
        """Add up the gradients of all micro-batches; returns their shares of the loss in this process."""
        losses: list[Tensor] = []
        for index, batch in enumerate(batches):
            if index:
                between()
            with unsynced(self._wrapped) if index < len(batches) - 1 else nullcontext():
                losses.append(self._forward_backward(batch, targets, number))
        return losses

    def clip(self) -> float:
        """Norm of the whole gradient, which is shortened to ``train.max_grad_norm``."""
        norm = self._accelerator.clip_grad_norm_(self._parameters, self._train.max_grad_norm or math.inf)
        return float(norm)

    def first_fault(self, batch: Batch) -> str | None:
        """The module or weight where a batch first gives numbers that are not finite; all processes look together."""

        def again() -> None:
            with self._accelerator.autocast():
                self._model(**self._inputs(batch), num_items_in_batch=1)

        module = first_non_finite(self._model, again) or first_non_finite_gradient(self._model)
        return next((found for found in self._team.gather(module) if found is not None), None)

    def _update(self, batches: Sequence[Batch], number: int) -> float:
        if isinstance(self._wrapped, ZeroModel):  # clips by itself, and changes nothing where the norm is not finite
            norm = self._wrapped.step()
            self._check_norm(norm, batches, number)
            return norm
        norm = self.clip()
        self._check_norm(norm, batches, number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _backward(self, loss: Tensor) -> None:
        if isinstance(self._wrapped, ZeroModel):
            self._wrapped.backward(loss)
        else:
            self._accelerator.backward(loss)

    def _forward_backward(self, batch: Batch, targets: int, number: int) -> Tensor:
        try:
            with self._accelerator.autocast():
                output = self._wrapped(**self._inputs(batch), num_items_in_batch=targets, target_logits_only=True)
            loss: Tensor = output.loss
            self._backward(loss * self._team.size)  # gradients are averaged over the processes
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise memory_error(batch, number, self._train) from error
            raise
        return loss.detach()

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        return {key: to_device(value, self._device) for key, value in batch.items() if key != "ids"}

    def _check_norm(self, norm: float, batches: Sequence[Batch], number: int) -> None:
        if math.isfinite(norm):
            self._overflows = 0
            return
        self._overflows += 1
        if self._accelerator.scaler is not None and self._overflows <= _MOST_OVERFLOWS:
            return  # the scale is too large still; the optimizer skips this step by itself
        raise self._non_finite("gradient", norm, batches, batches, number)

    def _non_finite(
        self, what: str, value: float, bad: Sequence[Batch], batches: Sequence[Batch], number: int
    ) -> MMTuneError:
        place = self.first_fault(next(iter(bad), batches[0]))
        rows = shown_ids(self._team.joined([Batch(ids=batch["ids"]) for batch in bad]))
        return non_finite_error(what, number, value, rows, place, self._run)
