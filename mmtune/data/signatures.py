"""Signatures of rows: short values that are alike where texts and pictures are, for finding near-duplicates.

A text is the MinHash of its runs of five characters, a picture a hash of its coarse shape with its mean colour.

Source:
    MinHash: Broder 1997, "On the resemblance and containment of documents", by datasketch. Perceptual hash of the
    low frequencies of a cosine transform, by ImageHash.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from mmtune.core.errors import MediaError, MissingExtraError
from mmtune.data.drawing import mix
from mmtune.data.examination import Facts
from mmtune.data.items import RowError
from mmtune.data.markers import GENERAL
from mmtune.data.media import Found
from mmtune.data.sample import Media, Sample

Likeness = Literal["rows", "texts", "pictures"]
LIKENESSES: tuple[str, ...] = ("rows", "texts", "pictures")
PERMUTATIONS = 64
SCHEME = "affine32"  # of datasketch; signatures of another one cannot be compared with these
MEDIUM = np.dtype([("hash", "<u8"), ("colour", "u1", (3,)), ("picture", "?")])
"""A medium of a row: of a picture what it looks like, of anything else what it is."""
_RUN = 5  # characters
_POWERS = np.uint64(0x9E3779B97F4A7C15) ** np.arange(_RUN, dtype=np.uint64)
_PACKAGES = ("datasketch", "imagehash")


@dataclass(frozen=True)
class Signer:
    """Makes signatures; picklable.

    Attributes:
        what: What of a row counts: ``texts``, ``pictures``, or both (``rows``).

    Raises:
        MissingExtraError: The extra ``dedup`` is not installed.
    """

    what: Likeness

    def __post_init__(self) -> None:
        if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
            raise MissingExtraError("Finding near-duplicates", "dedup")

    def sign(self, sample: Sample, found: Sequence[Found], facts: Sequence[Facts]) -> bytes:
        """The signature of a row: its text's part, then one :data:`MEDIUM` for each medium.

        Raises:
            RowError: A picture that cannot be opened (``media_damaged``).
        """
        text = b"" if self.what == "pictures" else _sign_text(" ".join(turn.text for turn in sample.turns))
        if self.what == "texts":
            return text
        media = np.zeros(len(found), MEDIUM)
        for place, (item, at, known) in enumerate(zip(sample.media, found, facts, strict=True)):
            media[place] = _sign_medium(item, at, known)
        return text + media.tobytes()


def parts_of(signature: bytes, what: Likeness) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The text's numbers, ``[PERMUTATIONS]`` or none, and the media of a signature, ``[M]``."""
    size = 0 if what == "pictures" else 4 * PERMUTATIONS
    return np.frombuffer(signature[:size], "<u4"), np.frombuffer(signature[size:], MEDIUM)


def _sign_text(text: str) -> bytes:
    letters = np.frombuffer(" ".join(text.lower().split()).encode("utf-32-le"), "<u4").astype(np.uint64)
    letters = np.pad(letters, (0, max(0, _RUN - len(letters))))
    windows = np.lib.stride_tricks.sliding_window_view(letters, _RUN)
    hashes = mix(0, windows @ _POWERS) >> np.uint64(32)  # all at once: one by one takes most of the time
    signature = _empty_signature().copy()
    signature.update_batch(np.unique(hashes).tolist())
    return bytes(signature.hashvalues.astype("<u4").tobytes())


@lru_cache(maxsize=1)
def _empty_signature() -> Any:
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, scheme=SCHEME, hashfunc=int)


def _sign_medium(item: Media, found: Found, facts: Facts) -> tuple[int, tuple[int, ...], bool]:
    if GENERAL.get(item.modality, item.modality) != "image" or found.rule == "url":
        name = facts.sha256 or found.path or repr(found.value)
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big"), (0, 0, 0), False
    return _sign_picture(_content(item, found))


def _content(item: Media, found: Found) -> Any:
    if found.rule == "inline":
        return found.value
    return item.uri if found.rule == "embedded" else found.path


def _sign_picture(content: Any) -> tuple[int, tuple[int, ...], bool]:
    import imagehash
    from PIL import Image

    from mmtune.modalities.pictures import open_picture

    try:
        picture = open_picture(content)
    except MediaError as error:
        raise RowError("media_damaged", error.message, fix=error.fix) from error
    shape = np.packbits(imagehash.phash(picture).hash).tobytes()
    colour = picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # the hash sees brightness alone
    return int.from_bytes(shape, "big"), tuple(colour), True
