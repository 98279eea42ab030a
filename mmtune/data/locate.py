"""Which files a name of data stands for."""

from __future__ import annotations

from pathlib import Path

from mmtune.core.errors import DataError

ENDINGS = (".json", ".jsonl")
_VALIDATION = ("val", "validation")


def data_files(path: Path) -> list[Path]:
    """The data files of a path: itself, or all JSON files of a folder, by name.

    Raises:
        DataError: Nothing there, or nothing that is data.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        hint = "check the path"
        if str(path).count("/") == 1 and not path.parent.exists():
            hint = "check the path; data sets are not fetched from the hub, so download them first"
        raise DataError(f"No such file or folder: {path}", where=str(path), fix=hint)
    if (path / "manifest.json").is_file():
        raise DataError(
            "The folder holds data that is prepared already.", where=str(path), fix="train on it, or name its source"
        )
    found = sorted(file for file in path.iterdir() if file.suffix in ENDINGS and file.is_file())
    if not found:
        raise DataError(
            f"The folder holds no {' or '.join(ENDINGS)} file.", where=str(path), fix="name the data file itself"
        )
    return found


def split_files(folder: Path) -> tuple[Path, Path | None]:
    """The training file of a folder of raw data and its validation file, if it has one.

    A folder with ``train.json`` (or ``.jsonl``) is read so, with ``val`` or ``validation`` beside it; a folder with a
    single data file is that file.

    Raises:
        DataError: Several files, none of them called ``train``.
    """
    found = data_files(folder)
    by_name = {file.stem: file for file in found}
    validation = next((by_name[name] for name in _VALIDATION if name in by_name), None)
    if "train" in by_name:
        return by_name["train"], validation
    if len(found) == 1:
        return found[0], None
    raise DataError(
        f"The folder holds {len(found)} data files and none is called train: {', '.join(file.name for file in found)}.",
        where=str(folder),
        fix=f"name one of them, for example {folder / found[0].name}",
    )
