"""Where the media of a row are: beside the data file, under a media root, or in the working directory."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

from mmtune.core.errors import MediaError, UsageError
from mmtune.data.messages import RowError
from mmtune.data.sample import Media

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
        rule: Which rule found it; ``data-uri``, ``url`` and ``unchecked`` for those that were not looked for.
        root: Index of the root that ``path`` lies under, or -1.
    """

    path: str
    rule: str
    root: int = -1


class MediaLookup:
    """The rules by which a path in a data file is found.

    A path that leaves the roots, and any URL, is refused, so that data from elsewhere can read nothing but its own
    media. Links that the owner of the folders put there are followed.

    Args:
        data_folder: Where the data file lies.
        media_root: Further folders, in order.
        allow_outside: Let paths leave the roots.
        allow_urls: Let URLs pass; they are fetched when the row is loaded.
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
    ) -> None:
        for folder in media_root:
            if not Path(folder).is_dir():
                raise UsageError(f"No such folder: {folder}", where="--media-root", fix="give a folder that exists")
        named = [("beside-data", data_folder), *[(f"media-root:{folder}", Path(folder)) for folder in media_root]]
        named.append(("working-directory", Path.cwd()))
        self.roots = [Root(rule, os.path.abspath(folder)) for rule, folder in named]
        self.allow_outside = allow_outside
        self.allow_urls = allow_urls
        self.look = look

    def find(self, uri: object) -> Found:
        """Look a path up.

        Raises:
            RowError: With the reason ``url_refused``, ``path_outside``, ``media_missing``, ``bad_media_field`` or
                ``bad_data_uri``.
        """
        if not isinstance(uri, str):
            raise RowError("bad_media_field", f"A medium is given as {uri!r}, which is no path.", fix="give a path")
        if uri.startswith("data:"):
            data_uri_bytes(uri)
            return Found(uri, "data-uri")
        if uri.startswith("file://"):
            uri = unquote(urlparse(uri).path)
        if _URL.match(uri):
            if not self.allow_urls:
                raise RowError(
                    "url_refused", f"The row names a URL: {uri}", fix="download it, or allow it with --allow-urls"
                )
            return Found(uri, "url")
        if "\0" in uri:
            raise RowError("bad_media_field", "The path holds a NUL character.", fix="repair the path")
        return self._find_file(uri)

    def _find_file(self, uri: str) -> Found:
        allowed = []
        for index, root in enumerate(self.roots):
            path = os.path.normpath(os.path.join(root.folder, uri))  # an absolute path replaces the root
            inside = next((at for at, other in enumerate(self.roots) if _lies_in(path, other.folder)), -1)
            if inside < 0 and not self.allow_outside:
                continue
            base = index if _lies_in(path, root.folder) else inside
            allowed.append((path, root.rule if base == index else _rule(self.roots, base), base))
        if not allowed:
            raise RowError(
                "path_outside",
                f"The path '{uri}' leaves the folders that media may lie in.",
                fix="name the folder with --media-root, or allow it with --allow-outside",
            )
        if not self.look:
            return Found(allowed[0][0], "unchecked", allowed[0][2])
        for path, rule, base in allowed:
            if os.path.exists(path):
                return Found(path, rule, base)
        for path, rule, base in allowed:
            other = _with_other_ending(path)
            if other is not None:
                return Found(other, f"{rule}, other ending", base)
        tried = ", ".join(dict.fromkeys(path for path, _, _ in allowed))
        raise RowError(
            "media_missing", f"No such file: '{uri}'. Looked for: {tried}.", fix="name its folder with --media-root"
        )


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


def check_media(media: Media, found: Found, how: CheckMedia) -> None:
    """Look at a medium that was found.

    Raises:
        RowError: With the reason ``media_is_folder``, ``media_empty``, ``media_unreadable`` or ``media_damaged``.
    """
    if how == "none" or found.rule == "url":
        return
    if found.rule != "data-uri":
        _check_file(found.path)
    if how == "decode" and media.modality == "image":
        from mmtune.modalities.pictures import open_picture

        content = data_uri_bytes(found.path) if found.rule == "data-uri" else found.path
        try:
            open_picture(content)
        except MediaError as error:
            raise RowError("media_damaged", error.message, fix=error.fix) from error


def _check_file(path: str) -> None:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise RowError("media_unreadable", f"{path}: {error.strerror}.", fix="check the file") from error
    if os.path.isdir(path):
        raise RowError("media_is_folder", f"{path} is a folder.", fix="name a file in it")
    if size == 0:
        raise RowError("media_empty", f"{path} is empty.", fix="copy it again")
    if not os.access(path, os.R_OK):
        raise RowError("media_unreadable", f"No permission to read {path}.", fix="change the file's permissions")
