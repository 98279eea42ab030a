"""Memory of this process: now, and at most."""

from __future__ import annotations

import mmap

import pytest
import torch

from mmtune.core import memory
from mmtune.core.memory import PeakMemory, peak_memory_bytes, restart_peak

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


@pytest.mark.parametrize("exact", [True, False])
def test_growth_is_from_what_was_in_use_to_the_most(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:
        monkeypatch.setattr(memory, "restart_peak", lambda device: False)
    _fill(200 * MEGABYTE)
    with PeakMemory(CPU) as peak:
        _fill(60 * MEGABYTE)
    found = peak.bytes
    assert 40 * MEGABYTE < found < 180 * MEGABYTE  # the bytes, and the mapping they are copied to
    _fill(200 * MEGABYTE)
    assert peak.bytes == found
