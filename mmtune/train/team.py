"""The processes that train one model together: who they are, and what they agree on between steps.

A run of one process is a team of one: nothing is sent, nobody waits.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from accelerate import Accelerator

from mmtune.core.errors import MMTuneError, Stopped
from mmtune.train.launched import is_launched, launched_rank

Value = TypeVar("Value")


@functools.cache
def has_voice() -> bool:
    """Whether this process tells of the end of a run: of several that fail, the first to ask.

    Asked of the launcher's own store, which outlives its processes, also when they were never connected.
    """
    if not is_launched():
        return True
    try:
        patience = datetime.timedelta(seconds=5)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(address, port, is_master=False, timeout=patience, wait_for_workers=False)
        return bool(store.add("mmtune/voice", 1) == 1)
    except (RuntimeError, KeyError, ValueError):
        return launched_rank() == 0


def leave() -> None:
    """Close the connections of this process to the others, at the end of work that went well.

    Left to the end of the interpreter, their threads may outlive it, which aborts a process that has done its work.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()


class Team:
    """All processes of a run, by their number from 0; process 0 writes every file.

    Every method but the properties is called by all processes at the same place, or all of them wait for ever.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank = int(accelerator.process_index)
        self.size = int(accelerator.num_processes)
        self._device = accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes; exact for whole numbers below 2^53."""
        if self.size == 1:
            return [float(value) for value in values]
        found = torch.tensor(list(values), dtype=torch.float64, device=self._device)
        distributed.all_reduce(found)
        return [float(value) for value in found.tolist()]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process."""
        return bool(self.sum([float(flag)])[0])

    def gather(self, value: Value) -> list[Value]:
        """The value of every process, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def joined(self, values: Sequence[Value]) -> list[Value]:
        """The values of all processes in one list, in the order of the processes."""
        return [value for found in self.gather(list(values)) for value in found]

    def on_main(self, work: Callable[[], Value]) -> Value:
        """Let process 0 do something; all get what it returns.

        Raises:
            MMTuneError: The work's own error, in every process.
        """
        if self.size == 1:
            return work()
        said: list[Any] = [None, None]
        if self.is_main:
            try:
                said[0] = work()
            except MMTuneError as error:
                said[1] = error
            except Stopped as error:
                said[1] = error.interruption()
        distributed.broadcast_object_list(said, src=0)
        if said[1] is not None:
            raise said[1]
        return said[0]  # type: ignore[no-any-return]

    def together(self, work: Callable[[], Value]) -> Value:
        """Let every process do its own part; when it fails in some, all raise the error of the first of them.

        Raises:
            MMTuneError: The error of the lowest process that failed.
        """
        if self.size == 1:
            return work()
        result, failure = None, None
        try:
            result = work()
        except MMTuneError as error:
            failure = error
        except Stopped as error:
            failure = error.interruption()
        if self.any(failure is not None):
            raise next(error for error in self.gather(failure) if error is not None)
        return result  # type: ignore[return-value]

    def wait(self) -> None:
        """Go on when all are here."""
        if self.size > 1:
            distributed.barrier()


def share_of(batches: Sequence[Sequence[int]], rank: int, size: int) -> list[Sequence[int]]:
    """What one of ``size`` processes does of a step: as many micro-batches as every other, none larger than given.

    Whole micro-batches where they come out even, else a slice of each; a slice may be empty. The rows of a step are
    those of a run of one process, whatever the number of processes.
    """
    if len(batches) % size == 0:
        return list(batches[rank::size])
    return [batch[rank::size] for batch in batches]
