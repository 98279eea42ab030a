"""A conversion as asked for. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Progress = Callable[[str, int, int], None]  # what, megabytes done, megabytes in all


@dataclass(frozen=True, slots=True)
class Job:
    """What :func:`mmtune.convert.run.convert` was called with; see there."""

    source: str
    target: Path
    from_format: str | None
    destination: str | None  # None: what suits the source
    llm: str | None
    vision: str | None
    encoders: Mapping[str, str]
    dtype: str | None
    max_shard_size: str
    verify: bool
    overwrite: bool
    settings: Mapping[str, Any]
    push: str | None = None  # ORG/NAME that the folder is uploaded to
