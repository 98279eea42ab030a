"""Where the media of a row are: beside the data file, under a media root, or in the working directory."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from mmtune.core.errors import UsageError
from mmtune.data.items import RowError, with_paths

CheckMedia = Literal["none", "stat", "decode"]
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_OTHER_ENDINGS = tuple(ending for lower in _PICTURES for ending in (lower, lower.upper()))


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that media are looked up in, and the name of the rule that it stands for."""

    rule: str
    folder: str


@dataclass(frozen=True, slots=True)
class Found:
    """A medium that has been looked up.

    Attributes:
        path: The file, or the ``data:`` URI or URL as it is.
        rule: Which rule found it; ``data-uri``, ``embedded``, ``inline``, ``url`` and ``unchecked`` for those that
            were not looked for.
        root: Index of the root that ``path`` lies under, or -1.
        value: Of an inline item, with the paths in it as they were found.
    """

    path: str
    rule: str
    root: int = -1
    value: Any = None


class MediaLookup:
    """The rules by which a path in a data file is found.

    A path that leaves the roots, and any URL, is refused, so that data from elsewhere can read nothing but its own
    media. Links that the owner of the folders put there are followed.

    Args:
        data_folder: Where the data file lies.
        media_root: Further folders, in order.
        allow_outside: Let paths leave the roots.
        allow_urls: Let URLs pass; they are fetched when the row is loaded.
        downloads: Folder with the pictures of URLs, as ``--download`` fills it.
        look: Whether to look at the disk at all. Without it the first root is taken.

    Raises:
        UsageError: A media root that is no folder.
    """

    def __init__(
        self,
        data_folder: Path,
        media_root: Sequence[str | Path] = (),
        *,
        allow_outside: bool = False,
        allow_urls: bool = False,
        look: bool = True,
        downloads: str | Path | None = None,
    ) -> None:
        for folder in media_root:
            if not Path(folder).is_dir():
                raise UsageError(f"No such folder: {folder}", where="--media-root", fix="give a folder that exists")
        named = [("beside-data", data_folder), *[(f"media-root:{folder}", Path(folder)) for folder in media_root]]
        named.append(("working-directory", Path.cwd()))
        self.roots = [Root(rule, os.path.abspath(folder)) for rule, folder in named]
        if downloads is not None:
            self.roots.append(Root("downloaded", os.path.abspath(downloads)))
        self.downloads = None if downloads is None else os.path.abspath(downloads)
        self.allow_outside = allow_outside
        self.allow_urls = allow_urls
        self.look = look

    def find(self, uri: object) -> Found:
        """Look a path up.

        Raises:
            RowError: With the reason ``url_refused``, ``path_outside``, ``path_too_long``, ``media_missing``,
                ``windows_path``, ``bad_media_field`` or ``bad_data_uri``.
        """
        if isinstance(uri, bytes | bytearray):
            return Found("", "embedded")
        if isinstance(uri, dict | list):
            return Found("", "inline", value=with_paths(uri, lambda path: self.find(path).path))
        if not isinstance(uri, str):
            raise RowError("bad_media_field", f"A medium is given as {uri!r}, which is no path.", fix="give a path")
        if uri.startswith("data:"):
            data_uri_bytes(uri)
            return Found(uri, "data-uri")
        if uri.startswith("file://"):
            uri = unquote(urlparse(uri).path)
        if _URL.match(uri):
            return self._url(uri)
        if "\0" in uri:
            raise RowError("bad_media_field", "The path holds a NUL character.", fix="repair the path")
        try:
            return self._find_file(uri)
        except OSError as error:
            raise RowError("path_too_long", f"The path cannot be: {error.strerror}.", fix="shorten it") from error

    def _url(self, uri: str) -> Found:
        if self.downloads is not None:
            path = url_file(self.downloads, uri)
            if _exists(path):
                return Found(path, "downloaded", len(self.roots) - 1)
            if not self.allow_urls:
                raise RowError(
                    "download_failed", f"Could not be downloaded: {uri}", fix="see failures.jsonl in the downloads"
                )
        if not self.allow_urls:
            raise RowError(
                "url_refused",
                f"The row names a URL: {uri}",
                fix="download it and name the file; prepare-data has --allow-urls, a recipe data.allow_urls",
            )
        try:
            whole = bool(urlparse(uri).hostname)
        except ValueError:
            whole = False
        if not whole:
            raise RowError("bad_url", f"The URL names no server: {uri}", fix="repair the URL")
        return Found(uri, "url")

    def _find_file(self, uri: str) -> Found:
        allowed = []
        for path, rule, base in self._places(uri):
            if not self.look:
                return Found(path, "unchecked", base)
            if _exists(path):
                return Found(path, rule, base)
            allowed.append((path, rule, base))
        if not allowed:
            raise RowError(
                "path_outside",
                f"The path '{uri}' leaves the folders that media may lie in.",
                fix="name the folder with --media-root; prepare-data and generate have --allow-outside, a recipe "
                "data.allow_outside",
            )
        for path, rule, base in allowed:
            other = _with_other_ending(path)
            if other is not None:
                return Found(other, f"{rule}, other ending", base)
        if "\\" in uri and any(_exists(path) for path, _, _ in self._places(uri.replace("\\", "/"))):
            raise RowError(
                "windows_path",
                f"The path '{uri}' is written with backslashes.",
                fix=f"write {uri.replace(chr(92), '/')}",
            )
        tried = ", ".join(dict.fromkeys(path for path, _, _ in allowed))
        raise RowError(
            "media_missing", f"No such file: '{uri}'. Looked for: {tried}.", fix="name its folder with --media-root"
        )

    def _places(self, uri: str) -> Iterator[tuple[str, str, int]]:
        """Each allowed (path, rule, root) in order."""
        for index, root in enumerate(self.roots):
            path = os.path.normpath(os.path.join(root.folder, uri))  # an absolute path replaces the root
            if _lies_in(path, root.folder):
                yield path, root.rule, index
                continue
            inside = next((at for at, other in enumerate(self.roots) if _lies_in(path, other.folder)), -1)
            if inside >= 0 or self.allow_outside:
                yield path, _rule(self.roots, inside), inside


def url_file(folder: str | Path, url: str) -> str:
    """Where the picture of a URL lies among downloads."""
    return os.path.join(folder, "urls", hashlib.sha256(url.encode()).hexdigest())


def _exists(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True


def _rule(roots: Sequence[Root], index: int) -> str:
    return roots[index].rule if index >= 0 else "outside"


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _with_other_ending(path: str) -> str | None:
    """The same picture under another of the usual endings, as when a GIF was saved as JPEG."""
    stem, ending = os.path.splitext(path)
    if ending.lower() not in _PICTURES:
        return None
    return next((stem + other for other in _OTHER_ENDINGS if other != ending and os.path.exists(stem + other)), None)


def data_uri_bytes(uri: str) -> bytes:
    """The bytes inside a ``data:…;base64,…`` URI.

    Raises:
        RowError: Another kind of data URI, broken base64, or nothing in it (``bad_data_uri``).
    """
    head, comma, body = uri.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("no base64")
        content = base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error) as error:
        raise RowError("bad_data_uri", f"A data URI cannot be read: {uri[:40]}…", fix="give valid base64") from error
    if not content:
        raise RowError("bad_data_uri", "A data URI is empty.", fix="give the bytes of a picture")
    return content
