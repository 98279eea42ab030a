"""Which files a name of data stands for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from mmtune.core.errors import DataError, nearest
from mmtune.data.readers import find_reader
from mmtune.data.sources import claiming

ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".tar", ".tar.gz", ".tgz")
_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_SPLIT_NAME = re.compile(r"([a-z]+)(-\d+(-of-\d+(-[0-9a-f]+)?)?)?\.")  # train.json, train-00000-of-00002.parquet
_HUB = "hub:"


@dataclass(frozen=True)
class Located:
    """One source: a file, a folder that is read as a whole, or a data set of the hub.

    Attributes:
        split: The split that its name says, beside files of other splits.
    """

    path: Path
    hub: bool = False
    split: str | None = None


def locate(name: str | Path) -> list[Located]:
    """What a name stands for: a file, the data files of a folder by name, or a data set of the hub.

    ``ORG/NAME`` that is nothing here, and every ``hub:ORG/NAME``, is of the hub. In a folder with files ``train`` and
    ``val``, ``validation`` or ``test``, these are splits; numbers of shards may stand behind the names.

    Raises:
        DataError: Nothing there, or nothing that is data, with the nearest name.
    """
    path = Path(name)
    if str(name).startswith(_HUB) or _is_hub_id(path):
        return [Located(Path(str(name).removeprefix(_HUB)), hub=True)]
    if is_whole(path):
        return [Located(path)]
    if path.is_dir() and not data_names(path):
        _refuse_prepared(path)
        if not find_reader(path).claims(path):
            raise DataError(
                f"The folder holds no {' or '.join(ENDINGS)} file, and no pictures with captions.",
                where=str(path),
                fix="name the data file itself",
            )
        return [Located(path)]
    files = data_files(path)
    known = {file: _split_of(file) for file in files} if path.is_dir() else {}
    if not {"train"} < set(known.values()) - {None}:
        known = {}
    return [Located(file, split=known.get(file)) for file in files]


def _split_of(file: Path) -> str | None:
    found = _SPLIT_NAME.match(file.name)
    return _SPLITS.get(found[1]) if found else None


def is_whole(path: Path) -> bool:
    """Whether a folder is one source, in a format or container made of several files."""
    if not path.is_dir():
        return False
    reader = find_reader(path)
    return claiming(path) is not None or (reader.whole and reader.claims(path))


def data_files(path: Path) -> list[Path]:
    """The data files of a path: itself, those of a folder, or all files of a folder that is one source.

    Raises:
        DataError: Nothing there, or nothing that is data.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"No such file or folder: {path}", where=str(path), fix=_nearby(path))
    _refuse_prepared(path)
    found = data_names(path)
    if is_whole(path) or (not found and find_reader(path).claims(path)):
        return sorted(file for file in path.rglob("*") if file.is_file())
    if not found:
        raise DataError(
            f"The folder holds no {' or '.join(ENDINGS)} file.", where=str(path), fix="name the data file itself"
        )
    return found


def data_names(folder: Path) -> list[Path]:
    """The files of a folder that may hold rows; beside tars only these, as a download leaves tables there too."""
    found = sorted(file for file in folder.iterdir() if file.name.lower().endswith(ENDINGS) and file.is_file())
    found = [file for file in found if not file.name.endswith("_stats.json")]
    tars = [file for file in found if file.name.lower().endswith((".tar", ".tar.gz", ".tgz"))]
    return tars or found


def slice_of(path: Path) -> dict[str, object] | None:
    """What the manifest of a slice says, None for everything that is no slice."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("slice") else None


def split_files(folder: Path) -> tuple[Path, Path | None]:
    """The training file of a folder of raw data and its validation file, if it has one.

    A folder with ``train.json`` (or another data file of that name) is read so, with ``val`` or ``validation`` beside
    it; a folder with a single data file is that file.

    Raises:
        DataError: Several files, none of them called ``train``.
    """
    found = data_files(folder)
    by_name = {file.name.split(".")[0]: file for file in found}
    validation = next((by_name[name] for name in ("val", "validation") if name in by_name), None)
    if "train" in by_name:
        return by_name["train"], validation
    if len(found) == 1:
        return found[0], None
    raise DataError(
        f"The folder holds {len(found)} data files and none is called train: {', '.join(file.name for file in found)}.",
        where=str(folder),
        fix=f"name one of them, for example {folder / found[0].name}",
    )


def _refuse_prepared(path: Path) -> None:
    if (path / "manifest.json").is_file():
        raise DataError(
            "The folder holds data that is prepared already.", where=str(path), fix="train on it, or name its source"
        )


def _is_hub_id(path: Path) -> bool:
    """``ORG/NAME``, with ``:SPLIT`` or not, where neither is anything here and the name does not look like a file."""
    parts = path.parts
    if len(parts) != 2 or path.is_absolute() or path.exists() or path.parent.exists() or parts[0] in (".", "..", "~"):
        return False
    return not parts[1].split(":")[0].lower().endswith(ENDINGS)


def _nearby(path: Path) -> str:
    """The entry of the folder, or of the nearest folder that exists, that was most likely meant."""
    folder, wanted = path.parent, path.name
    while not folder.is_dir() and folder != folder.parent:
        folder, wanted = folder.parent, folder.name
    guess = nearest(wanted, [entry.name for entry in folder.iterdir() if entry.name != wanted])
    if guess is None:
        return "check the path"
    rest = path.relative_to(folder / wanted) if folder != path.parent else None
    return f"did you mean {folder / guess / rest if rest else folder / guess}?"
