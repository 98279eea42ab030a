"""What a launcher (accelerate, torchrun) says to the processes it starts; read before torch is loaded."""

from __future__ import annotations

import os


def is_launched() -> bool:
    """Whether this process is one of several."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def launched_rank() -> int:
    """The number of this process among them, from 0; 0 when it is alone."""
    return int(os.environ.get("RANK", "0")) if is_launched() else 0
