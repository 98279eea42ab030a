"""Raw data prepared on the fly, once: a folder named by all that its content follows from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from filelock import FileLock

from mmtune.data.ledger import Ledger
from mmtune.data.packing import MANIFEST, REJECTED, SCHEMA_NAME, read_rejected
from mmtune.data.prepare import describe, prepare

_LOG = logging.getLogger(__name__)
_FOLDER = "prepared"


def cache_folder(given: str | Path | None = None) -> Path:
    """``data.cache``, or the place that the platform has for caches."""
    if given is not None:
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mmtune"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "mmtune" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmtune"


def prepared(source: str | Path, cache: str | Path | None, options: Mapping[str, Any]) -> Path:
    """The prepared form of a raw source: what the cache holds, or made now; says which, and why.

    Args:
        options: Of :func:`mmtune.data.prepare.prepare`, which the content follows from; ``workers`` and
            ``max_bad_fraction`` may be among them and do not count.

    Raises:
        DataError: More bad rows than allowed, or a source that cannot be read.
    """
    root = writable(cache_folder(cache) / _FOLDER)
    wanted = {"form": SCHEMA_NAME, **describe([source], **options)}
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32]
    folder, note = root / key, root / f"{hashlib.sha256(os.path.abspath(source).encode()).hexdigest()[:32]}.json"
    with FileLock(root / f"{key}.lock"):  # processes of one run open the data together: one prepares it
        why = _why_not(folder, note, wanted)
        if why is None:
            _check_budget(folder, float(options.get("max_bad_fraction", 0.0)))
            _LOG.info("data cache: hit for %s", source)
            return folder
        _LOG.info("data cache: miss for %s (%s); preparing it", source, why)
        if not (folder / MANIFEST).is_file():  # somebody removed parts of it
            shutil.rmtree(folder, ignore_errors=True)
        prepare([source], folder, overwrite=True, **options)
        note.write_text(json.dumps(wanted), encoding="utf-8")
    return folder


def writable(folder: Path) -> Path:
    """The folder, or one for temporary files where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        other = (
            Path(tempfile.gettempdir()) / f"mmtune-{os.getuid() if sys.platform != 'win32' else 'cache'}" / folder.name
        )
        _LOG.warning("the data cache %s cannot be written to (%s): using %s", folder, error.strerror, other)
        other.mkdir(parents=True, exist_ok=True)
        return other


def _why_not(folder: Path, note: Path, wanted: Mapping[str, Any]) -> str | None:
    """Why the cache does not serve; None when it does."""
    if (folder / MANIFEST).is_file():
        gone = _changed_medium(folder)
        return f"{gone} is gone or has changed" if gone else None
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "it was not used before"
    hashes = [[source["sha256"] for source in described["sources"]] for described in (before, wanted)]
    if hashes[0] != hashes[1]:
        return "the data has changed"
    differing = [name for name, value in wanted.items() if before.get(name) != value]
    if differing == ["settings"]:
        old, new = before["settings"], wanted["settings"]
        changed = [f"{name} was {old.get(name)}, is {new[name]}" for name in new if old.get(name) != new[name]]
        return "; ".join(changed)
    names = {"form": "mmtune prepares data in another form now", "media_roots": "media are looked up in other folders"}
    return "; ".join(names.get(name, f"{name} has changed") for name in differing) or "it was removed"


def _changed_medium(folder: Path) -> str | None:
    """The first file that is not there any more with the size that it had, or None."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    roots = manifest["media_roots"]
    for split in manifest["splits"].values():
        for name in split["files"]:
            with pq.ParquetFile(folder / name) as table:
                for batch in table.iter_batches(columns=["media"]):
                    items = batch.column(0).flatten()
                    sizes, places = items.field("size").to_pylist(), items.field("root").to_pylist()
                    embedded = items.field("bytes").is_valid().to_pylist()
                    for size, root, path, inside in zip(
                        sizes, places, items.field("path").to_pylist(), embedded, strict=True
                    ):
                        if size is None or inside:
                            continue
                        whole = path if root < 0 else os.path.join(roots[root], path)
                        if not _has_size(whole, size):
                            return str(whole)
    return None


def _has_size(path: str, size: int) -> bool:
    try:
        return os.stat(path).st_size == size
    except OSError:
        return False


def _check_budget(folder: Path, max_bad_fraction: float) -> None:
    """The budget may be smaller than when the data was prepared."""
    ledger = Ledger()
    for row in read_rejected(folder):
        ledger.reject(row)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    ledger.accepted = manifest["rows"] - manifest["copies"]
    ledger.check_budget(max_bad_fraction, listed=str(folder / REJECTED))
