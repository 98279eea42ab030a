"""Every error a user can meet: what was given, what is allowed, where, and what to type next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class MMTuneError(Exception):
    """An error with an exit code and a way out.

    Args:
        message: What was given and what is wrong with it.
        where: The file, ``file:line``, row id or recipe key it was found at.
        fix: What to type or change next.
        allowed: The values that would have been accepted.
    """

    code = "internal"
    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        fix: str | None = None,
        allowed: Iterable[str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.fix = fix
        self.allowed = list(allowed) if allowed is not None else None

    def __reduce__(self) -> tuple[object, ...]:
        """Errors travel between the processes of a run; subclasses may be made from other arguments."""
        return _rebuilt, (type(self), str(self), self.__dict__)

    def to_json(self) -> dict[str, object]:
        """The value of the ``error`` key in a JSON result."""
        found: dict[str, object] = {
            "code": self.code,
            "exit": self.exit_code,
            "message": self.message,
            "where": self.where,
            "fix": self.fix,
        }
        if self.allowed is not None:
            found["allowed"] = self.allowed
        return found


def _rebuilt(kind: type[MMTuneError], text: str, values: dict[str, object]) -> MMTuneError:
    error = kind.__new__(kind, text)
    error.__dict__.update(values)
    return error


class UsageError(MMTuneError):
    """A command or recipe that cannot be understood."""

    code = "usage"
    exit_code = 2


class RecipeError(UsageError):
    """A recipe key or value that is not valid."""

    code = "recipe"


class DataError(MMTuneError):
    """Input data that is missing, broken or contradicts itself."""

    code = "data"
    exit_code = 3


class MediaError(DataError):
    """A picture, sound, video or document that cannot be found, opened or used."""

    code = "media"


class CheckpointError(DataError):
    """A checkpoint that is missing, damaged, or belongs to another method or base."""

    code = "checkpoint"


class ShapeError(MMTuneError, ValueError):
    """Tensors that do not fit together."""

    code = "shape"


class NotPossibleError(MMTuneError):
    """A valid wish that this method, target or installation cannot fulfil."""

    code = "not_possible"
    exit_code = 4


class MissingExtraError(NotPossibleError):
    """A feature whose optional dependency is not installed."""

    code = "missing_extra"

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency.", fix=f'pip install "mmtune[{extra}]"')


class ResourceError(MMTuneError):
    """Memory, disk, device or network that is not there."""

    code = "resources"
    exit_code = 5


class NumericalError(MMTuneError):
    """Non-finite values, nothing to train, or weights that did not move."""

    code = "numerical"
    exit_code = 6


class VerificationError(MMTuneError):
    """A result that does not equal what it was checked against."""

    code = "verification"
    exit_code = 7


class ScoreError(MMTuneError):
    """A score below the minimum that was asked for; ``result`` is the whole result all the same."""

    code = "min_score"
    exit_code = 8
    result: Mapping[str, object] | None = None


class Interruption(MMTuneError):
    """A run that was interrupted and goes on when the same command is run again."""

    code = "interrupted"
    exit_code = 75


class Abandoned(MMTuneError):
    """Work that was ended at once, by a second Ctrl-C or where nothing can go on later."""

    code = "interrupted"
    exit_code = 130


class Stopped(KeyboardInterrupt):
    """A signal asks for the end, raised wherever the work stands; no library takes it for an error of its own.

    It is no plain KeyboardInterrupt: one that has passed through ``exec``, as in many imports, makes Python end the
    process by SIGINT whatever the exit code was to be.
    """

    def interruption(self) -> Interruption:
        """What a person reads."""
        fix = "run the same command again: it goes on where it stopped"
        return Interruption(f"Interrupted by {self}; what was done is kept.", fix=fix)


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """The allowed name closest to a mistyped one, or None when nothing is close; the only longer one comes first."""
    names = list(allowed)
    longer = [name for name in names if given and name.startswith(given)]
    found = longer if len(longer) == 1 else difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    return found[0] if found else None


def unknown_name(kind: str, given: str, allowed: Iterable[str], *, where: str | None = None) -> UsageError:
    """The error for a name that is in no registry, with a did-you-mean."""
    names = sorted(allowed)
    guess = nearest(given, names)
    hint = f" Did you mean '{guess}'?" if guess else ""
    fix = f"use '{guess}'" if guess else f"use one of: {', '.join(names)}"
    return UsageError(
        f"Unknown {kind} '{given}'.{hint} Allowed: {', '.join(names)}.", where=where, fix=fix, allowed=names
    )
