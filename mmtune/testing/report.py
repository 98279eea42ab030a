"""What a conformance check returns, and how it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from mmtune.core.errors import VerificationError


@dataclass(frozen=True, slots=True)
class Finding:
    """One property that held."""

    property: str
    difference: float | None = None  # the largest one seen; None when nothing was measured
    tolerance: float | None = None
    note: str = ""

    def __str__(self) -> str:
        measured = (
            "" if self.difference is None else f" (difference {self.difference:.2g}, allowed {self.tolerance:.2g})"
        )
        return f"{self.property}: holds{measured}{'; ' + self.note if self.note else ''}"


@dataclass(slots=True)
class Report:
    """The properties of one method or modality, all of which held."""

    name: str
    findings: list[Finding] = field(default_factory=list)

    def add(
        self, property: str, difference: float | None = None, tolerance: float | None = None, note: str = ""
    ) -> None:
        """Note a property that held.

        Raises:
            VerificationError: The difference is larger than allowed, or not a number.
        """
        if difference is not None and tolerance is not None and not difference <= tolerance:
            raise broken(self.name, property, f"the results differ by {difference:.3g}, {tolerance:.3g} is allowed")
        self.findings.append(Finding(property, difference, tolerance, note))

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.name}: {len(self.findings)} properties hold", *(f"  {found}" for found in self.findings)]
        )


def broken(name: str, property: str, what: str) -> VerificationError:
    """The error for a property that does not hold."""
    return VerificationError(
        f"{name} breaks '{property}': {what}.", where=f"{name}, {property}", fix=_FIXES.get(property)
    )


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; infinite for unequal shapes, NaN when a value is not a number."""
    if found.shape != expected.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    return float((found.double() - expected.double()).abs().max())


_FIXES = {
    "neutral at the start": "initialise the last factor with zeros, or leave neutral_at_init False",
    "perception reaches the model": "return tokens for every placeholder, or attach hooks at every site",
    "text-only rows": "give rows that own no item zero weights, and touch every parameter in anchor()",
    "ragged media": "group items by features.owner instead of assuming one item a row",
    "permuting the batch": "let each row depend on its own items only",
    "padding": "take no part in padded positions; masks say which they are",
    "gradient checkpointing": "read the perception from the slot at every call and keep no state between calls",
    "save and load": "register everything trained as a parameter, everything else as a setting",
    "cached generation": "let hooks depend on the perception only, not on the number of calls or positions",
    "batched beams": "let each set of weights serve a whole number of rows, as apply_low_rank does",
}
