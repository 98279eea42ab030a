"""What a run tells of its memory."""

from __future__ import annotations

import mmap

import pytest
import torch

from mmtune.train.metrics import peak_memory_bytes, restart_peak

CPU = torch.device("cpu")
MEGABYTE = 1 << 20


def _fill(size: int) -> None:
    with mmap.mmap(-1, size) as memory:
        memory.write(b"x" * size)


def test_the_peak_is_that_of_one_run() -> None:
    _fill(200 * MEGABYTE)
    before = peak_memory_bytes(CPU)
    restart_peak(CPU)
    after = peak_memory_bytes(CPU)
    if after == before:
        pytest.skip("this system cannot start the peak anew")
    assert after < before - 100 * MEGABYTE
    _fill(50 * MEGABYTE)
    assert after + 40 * MEGABYTE < peak_memory_bytes(CPU) < before
