"""Which file of a folder a benchmark is read from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmtune.core.errors import DataError


def data_file(path: Path, names: Sequence[str], *, folder_name: str) -> Path:
    """The file that a path stands for: itself, or the first of the known names that its folder holds.

    Args:
        names: Patterns of file names, the preferred first.
        folder_name: A folder of this name inside ``path`` is looked into as well.

    Raises:
        DataError: Nothing there, or several files for the same name.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"No such file or folder: {path}", where=str(path), fix="check --data")
    for folder in (path, path / folder_name):
        for name in names:
            found = sorted(file for file in folder.glob(name) if file.is_file())
            if len(found) > 1:
                listed = ", ".join(file.name for file in found)
                raise DataError(f"Several files fit: {listed}.", where=str(folder), fix=f"name one: {found[0]}")
            if found:
                return found[0]
    raise DataError(f"The folder holds none of: {', '.join(names)}.", where=str(path), fix="name the data file itself")
