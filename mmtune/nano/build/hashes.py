"""The list of hashes that ``mmtune doctor`` checks the embedded model against; written last, after all parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
LIST = "sha256.json"


def main(arguments: Sequence[str] = ()) -> int:
    """Write the hashes of all embedded files: ``python -m mmtune.nano.build hashes [FOLDER]``."""
    folder = Path(arguments[0]) if arguments else ASSETS
    text = json.dumps(hashes_of(folder), indent=1, sort_keys=True)
    (folder / LIST).write_text(text + "\n", encoding="utf-8")
    return 0


def hashes_of(folder: Path) -> dict[str, str]:
    """Relative name to sha256 of every file below a folder, the list itself excepted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LIST)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
