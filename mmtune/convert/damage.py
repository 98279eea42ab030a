"""Files of a checkpoint that are not what their names say: read with care, told by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtune.core.errors import CheckpointError, NotPossibleError, ResourceError


def damaged(file: Path, error: BaseException, *, tensor: str | None = None) -> CheckpointError:
    """The error for a file that cannot be read as what its name says it is."""
    what = f"Tensor '{tensor}' cannot be read" if tensor else "The file cannot be read"
    detail = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return CheckpointError(f"{what}: {detail}", where=str(file), fix="download or copy the file again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint.

    Raises:
        CheckpointError: The file is missing, or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing.", where=str(path), fix="copy the whole checkpoint") from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(value, dict):
        raise CheckpointError("The file is no JSON object.", where=str(path), fix="copy the file again")
    return value


@contextmanager
def reading(place: Path, what: str, *, instead_of: str | None = None) -> Iterator[None]:
    """Let other code read files of a checkpoint: whatever damaged ones lead it to is told as such.

    Args:
        place: Where the files came from.
        instead_of: The place that is really read, a copy that the user never sees.

    Raises:
        CheckpointError: Anything went wrong, except what is impossible or short of memory, disk or network.
    """
    try:
        yield
    except (NotPossibleError, ResourceError):
        raise
    except Exception as error:
        detail = " ".join(str(error).split())[:300] or type(error).__name__
        detail = detail if instead_of is None else detail.replace(instead_of, str(place))
        message = f"{what} cannot be used: {detail}"
        raise CheckpointError(message, where=str(place), fix="copy the original files again") from error
