"""Memory that this process uses, now and at most: of an accelerator, or resident on the CPU."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import TracebackType

import psutil
import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"  # proc(5): resets the high-water mark of the resident set
_EVERY_S = 0.005
_CPU = torch.device("cpu")


def memory_in_use(device: torch.device = _CPU) -> int:
    """Bytes of this process on a device: allocated on an accelerator, resident on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def memory_in_all(device: torch.device = _CPU) -> int:
    """Bytes that a device has, used or not; of the CPU with what the system swaps out."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total + psutil.swap_memory().total)


def peak_memory_bytes(device: torch.device = _CPU) -> int:
    """Most bytes of this process on a device since it began, or since :func:`restart_peak`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource  # not on every system

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak if sys.platform == "darwin" else peak * 1024)


def restart_peak(device: torch.device = _CPU) -> bool:
    """Let the peak begin anew at what is in use now; False where the system does not allow it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text(_FORGET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


class PeakMemory:
    """Growth of memory while it is entered: from what was in use to the most that was.

    The system's own high-water mark is begun anew; where it cannot be, resident memory is looked at every 5 ms.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._exact = False
        self._found: int | None = None

    @property
    def bytes(self) -> int:
        """So far, or in all once it is left."""
        if self._found is not None:
            return self._found
        most = peak_memory_bytes(self._device) if self._exact else max(self._most, memory_in_use(self._device))
        return max(0, most - self._before)

    def __enter__(self) -> PeakMemory:
        self._exact = restart_peak(self._device)
        self._before = self._most = memory_in_use(self._device)
        if not self._exact:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._found = self.bytes
        if self._thread.is_alive():
            self._over.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._most = max(self._most, memory_in_use(self._device))
