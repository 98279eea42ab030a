"""Devices that a run may be planned for: what they hold and how fast they multiply."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from mmtune.core.errors import unknown_name

_TERA, _GIB = 1e12, 2**30
_RESERVED = {"cuda": 1.0 * _GIB, "cpu": 0.5 * _GIB}  # the driver's context and libraries; the system's own needs
_FRAGMENTS = 0.05  # share of the memory that an allocator cannot hand out


@dataclass(frozen=True)
class Device:
    """One kind of device.

    Attributes:
        memory: Bytes in all.
        rate: Operations a second of dense products, in 16 bits on accelerators, as published; measured on the CPU.
    """

    name: str
    kind: str  # cuda or cpu
    memory: int
    rate: float

    @property
    def usable(self) -> int:
        """Bytes that a run can count on."""
        return int(self.memory * (1 - _FRAGMENTS) - _RESERVED[self.kind])


def _card(name: str, gib: float, tera: float) -> Device:
    return Device(name, "cuda", int(gib * _GIB), tera * _TERA)


# Memory as the driver reports it; products in bf16 (fp16 where there is none) without sparsity, by NVIDIA's published
# figures: B200 (HGX, 1,000 W), H200 and H100 (SXM), A100, L40S, RTX 4090, RTX 3090, V100 (SXM). Not checked: A6000, T4.
CARDS = {
    card.name: card
    for card in (
        _card("b200", 179.0, 2250),
        _card("h200", 139.8, 989),
        _card("h100-80g", 79.1, 989),
        _card("a100-80g", 79.1, 312),
        _card("a100-40g", 39.4, 312),
        _card("l40s-48g", 44.5, 362),
        _card("a6000-48g", 47.4, 155),
        _card("rtx4090-24g", 23.5, 165),
        _card("rtx3090-24g", 23.6, 71),
        _card("v100-32g", 31.7, 125),
        _card("t4-16g", 14.6, 65),
    )
}


def planned_device(target: str, device: str = "auto") -> Device:
    """The device of a name, or with ``auto`` that of this machine.

    Args:
        device: What the run itself asks for; ``cpu`` plans for the CPU although there is an accelerator.

    Raises:
        UsageError: No such device in the table.
    """
    if target != "auto":
        key = target.lower().replace("_", "-")
        if key in CARDS:
            return CARDS[key]
        if key == "cpu":
            return _processor()
        raise unknown_name("target", target, ["auto", "cpu", *CARDS], where="--target")
    if torch.cuda.is_available() and not device.startswith("cpu"):
        found = torch.cuda.get_device_properties(0)
        known = [card.rate for card in CARDS.values() if card.name.split("-")[0] in found.name.lower()]
        return Device(found.name, "cuda", int(found.total_memory), known[0] if known else 100 * _TERA)
    return _processor()


def _processor() -> Device:
    import psutil

    return Device("cpu", "cpu", int(psutil.virtual_memory().available), _measured_rate())


def _measured_rate(size: int = 512, times: int = 4) -> float:
    """Operations a second of float32 products on this CPU."""
    one = torch.ones(size, size)
    least = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        torch.mm(one, one)
        least = min(least, time.perf_counter() - start)
    return 2.0 * size**3 / least
