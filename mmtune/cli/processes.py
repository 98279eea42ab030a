"""Commands that run in several processes and yet give one answer."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmtune.cli.console import Console, Result
from mmtune.train.launched import is_launched, launched_rank


def in_processes(console: Console, recipe: Any) -> Result:
    """Run this command again in ``run.num_processes`` processes, one of which prints the result."""
    from mmtune.train.launch import launch

    return Result({}, None, exit_code=launch(recipe, console.command[1:]))


@contextmanager
def one_voice(console: Console) -> Iterator[None]:
    """Let the first process tell how the work goes, and of an end before its time the process that meets it first."""
    if not is_launched():
        yield
        return
    console.silent = launched_rank() > 0
    try:
        yield
        from mmtune.train.team import leave

        leave()
    except BaseException:
        from mmtune.train.team import has_voice

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends all processes when one has ended
        console.silent = not has_voice()
        raise
