"""The same command again in several processes, through ``accelerate launch``."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence

import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from mmtune.core.errors import Interruption, NotPossibleError, ResourceError
from mmtune.model.build import resolve_device
from mmtune.train.recipe import Recipe

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # handed on to the processes, which save and end


def launch(recipe: Recipe, arguments: Sequence[str]) -> int:
    """Run ``mmtune ARGUMENTS`` in ``run.num_processes`` processes; the first of them prints the result.

    Returns:
        The exit code.

    Raises:
        ResourceError: Fewer devices than processes.
        NotPossibleError: A device that processes cannot share their work on.
    """
    count = recipe.run.num_processes
    _check_devices(recipe, count)
    given = ["--num_processes", str(count), "--num_machines", "1", "--multi_gpu", "--mixed_precision", "no"]
    given += ["--dynamo_backend", "no", "--main_process_port", "0", "--module", "mmtune"]
    options = launch_command_parser().parse_args([*given, *arguments])
    options.signals_to_handle = ",".join(_SIGNALS)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes tell what went wrong
    try:
        launch_command(options)
    except SignalException as error:
        return 130 if error.sigval == signal.SIGHUP else Interruption.exit_code
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 1), 1)
    return 0


def _check_devices(recipe: Recipe, count: int) -> None:
    device, where = resolve_device(recipe.run.device), recipe.where("run.num_processes")
    if device.type == "mps" or device.index is not None:
        raise NotPossibleError(
            f"Several processes cannot share the device '{device}'.", where=where, fix="--num-processes 1"
        )
    if device.type == "cuda" and count > torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise ResourceError(
            f"{count} processes need {count} devices, this machine has {there}.",
            where=where,
            fix=f"--num-processes {there}, or start them on several machines with accelerate launch",
        )
