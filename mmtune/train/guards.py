"""What stops a run, told so that the rows, the module and the setting to change are known."""

from __future__ import annotations

import faulthandler
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmtune.core.errors import NumericalError, ResourceError
from mmtune.model.encoding import Batch, row_lengths
from mmtune.train.files import writing
from mmtune.train.schema import TrainRecipe

_SHOWN_IDS = 16
_PATIENCE_S = 60.0  # beyond two hangs, until the watching thread counts as kept from running
_NUMERICAL_FIX = "lower train.learning_rate, use train.precision=fp32, or look at these rows"


def shown_ids(batches: Sequence[Batch]) -> str:
    """The rows of some batches, the first of them by name."""
    ids = [str(name) for batch in batches for name in batch["ids"]]
    more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
    return "rows " + ", ".join(ids[:_SHOWN_IDS]) + more


def memory_error(batch: Batch, step: int, train: TrainRecipe) -> ResourceError:
    """Out of memory: with which rows, how long they are, and the setting that makes them fit."""
    lengths = row_lengths(batch)
    rows, length = len(lengths), max(lengths, default=0)
    smaller = max(1, train.batch_size // 2)
    if rows > 1 and train.tokens_per_batch is not None:
        fix = f"--set train.tokens_per_batch={train.tokens_per_batch // 2}"
    elif rows > 1:
        more = train.accumulation * -(-train.batch_size // smaller)
        fix = f"--set train.batch_size={smaller} --set train.accumulation={more}"
    else:
        fix = f"--set data.max_length={max(1, length // 2)}"
    return ResourceError(
        f"Out of memory at step {step} with {rows} rows of up to {length} tokens (lengths {lengths[:_SHOWN_IDS]}).",
        where=shown_ids([batch]),
        fix=f"{fix}, or --set train.gradient_checkpointing=true",
    )


def non_finite_error(what: str, step: int, value: float, rows: str, module: str | None, run: str) -> NumericalError:
    """A loss or gradient that is no number: of which rows, and in which module it came up first."""
    place = f"; first in {module}" if module else ""
    return NumericalError(
        f"The {what} of step {step} is {value}{place}; nothing was learnt from it.",
        where=rows,
        fix=f"{_NUMERICAL_FIX}; see the step again: mmtune finetune --replay {run} --step {step}",
    )


def first_non_finite(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """The first module whose output is not finite when a batch is run again, or None when all are."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            if not found and not all(map(_finite, _tensors(output))):
                found.append(name)

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def first_non_finite_gradient(model: nn.Module) -> str | None:
    """The weight nearest to the loss whose gradient is not finite."""
    for name, parameter in reversed(list(model.named_parameters())):
        gradient = parameter.grad
        if gradient is not None and not _finite(gradient.to_local() if isinstance(gradient, DTensor) else gradient):
            return name
    return None


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from _tensors(inner)


class Watchdog:
    """Writes the stacks of all threads to a file when nothing has happened for a while; the run itself goes on.

    A thread of Python's own does it, between two steps of the interpreter: read from outside, the stacks of threads
    that are at work can end the process. Only where that thread is kept from running does faulthandler write instead.

    Args:
        path: Written to only when there is something to tell, apart from being made.
        minutes: Time between two beats that counts as a hang; None never does.
    """

    def __init__(self, path: Path, minutes: float | None) -> None:
        self._path = path
        self._seconds = math.inf if minutes is None else minutes * 60
        self._last = 0.0
        self._end = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the end of a block."""
        if math.isinf(self._seconds):
            yield
            return
        with writing(self._path):
            file = self._path.open("a", encoding="utf-8", errors="backslashreplace")
        self.beat()
        self._end.clear()
        thread = threading.Thread(target=self._watch, args=(file,), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()
            faulthandler.cancel_dump_traceback_later()
            with suppress(OSError):  # what ended the run is told, not what ails the disk
                file.close()
                if not self._path.stat().st_size:
                    self._path.unlink()

    def beat(self) -> None:
        """Something happened."""
        self._last = time.monotonic()

    def _watch(self, file: TextIO) -> None:
        while True:
            faulthandler.dump_traceback_later(2 * self._seconds + _PATIENCE_S, file=file)
            if self._end.wait(max(0.0, self._last + self._seconds - time.monotonic())):
                return
            if time.monotonic() - self._last >= self._seconds:
                with suppress(OSError):  # a full disk is told where the run itself writes
                    file.write(_stacks(self._seconds))
                    file.flush()
                self.beat()


def _stacks(seconds: float) -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = [f"{time.strftime('%Y-%m-%d %H:%M:%S')} nothing has happened for {seconds:g} s\n"]
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            found += [f"thread {names.get(ident, ident)}:\n", *traceback.format_stack(frame)]
    return "".join(found)
