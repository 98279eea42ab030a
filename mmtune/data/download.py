"""Media from URLs, only where the user allows it; each is fetched once into a cache."""

from __future__ import annotations

import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from mmtune.core.errors import MediaError
from mmtune.data.media import url_file

_TIMEOUT_S = 30
_LARGEST = 1 << 28


def fetch(url: str, cache: str | None, *, allowed: bool, where: str) -> str:
    """The local file of a URL.

    Args:
        cache: Folder to keep it in; a folder of the system's temporary files by default.
        where: Row that names it.

    Raises:
        MediaError: Not allowed, not reachable, or too large.
    """
    if not allowed:
        raise MediaError(f"The row names a URL: {url}", where=where, fix="download it, or set data.allow_urls to true")
    folder = Path(cache or Path(tempfile.gettempdir()) / "mmtune") / "urls"
    target = Path(url_file(folder.parent, url))
    if target.is_file():
        return str(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            content = answer.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise MediaError(f"More than {_LARGEST >> 20} MB lie at {url}.", where=where, fix="download it yourself")
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(content)
        os.replace(file.name, target)
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise MediaError(
            f"{url} cannot be fetched: {error}", where=where, fix="check the URL and the network"
        ) from error
    return str(target)
