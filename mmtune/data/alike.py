"""Rows that are nearly the same as an earlier one, found by their signatures without comparing all with all.

Texts are looked up by bands of their MinHash, pictures by pieces of their hash, of which near hashes share one; what
is found is then compared in full. Only rows that are like no earlier row are looked up, so that of every group of
near-duplicates one row stays, and each of the others is near that one itself. Three to four kB a row are in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mmtune.data.diskarray import DiskArray, Numbers
from mmtune.data.signatures import PERMUTATIONS, SCHEME, Likeness, parts_of

_TEXT_SHARE = 0.8  # of the runs of characters of two texts that are in both
_BITS = 4  # of 64 that hashes of near pictures may differ in
_COLOUR = 16  # of 255 that their mean colours may differ in
_RECALL = (0.1, 0.9)  # false candidates cost a comparison, missed ones are lost


def earlier_alike(signatures: Iterable[bytes | None], first: DiskArray, what: Likeness) -> DiskArray:
    """For each row the place of the first row that it is nearly the same as, -1 for none.

    Args:
        signatures: In the order of the rows; None for rows that are left out anyway.
        first: For each row the place of the earlier row that it is wholly the same as, -1 for none, ``[R]``.

    Returns:
        Places, ``[R]``. A copy of a row has what the row itself has.
    """
    alike = DiskArray.full(first.folder, len(first), -1)
    index, found, known = _Index(what), alike.mapped(), first.mapped()
    for place, signature in enumerate(signatures):
        if known[place] >= 0:
            found[place] = found[known[place]]
        elif signature is not None:
            found[place] = index.find_or_add(place, *parts_of(signature, what))
    return alike


class _Index:
    """Rows that are like no earlier one, by pieces of their signatures."""

    def __init__(self, what: Likeness) -> None:
        from datasketch import MinHashLSH

        self._what = what
        self._texts = MinHashLSH(threshold=_TEXT_SHARE, num_perm=PERMUTATIONS, weights=_RECALL)
        self._pictures: defaultdict[tuple[int, int, int], list[int]] = defaultdict(list)
        self._rows: dict[int, tuple[Numbers, Numbers]] = {}

    def find_or_add(self, place: int, text: Numbers, media: Numbers) -> int:
        """The first row like this one; -1 when there is none, and it is added then."""
        if self._what == "pictures" and not len(media):
            return -1
        by_media = len(media) > 0  # many rows ask the same of different pictures: these tell them apart better
        candidates = self._by_media(media) if by_media else self._by_text(text)
        near = next((one for one in sorted(candidates) if _near(self._rows[one], (text, media))), -1)
        if near < 0:
            self._rows[place] = (text, media)
            if by_media:
                for piece in _pieces(media):
                    self._pictures[piece].append(place)
            else:
                self._texts.insert(place, _lean(text), check_duplication=False)
        return near

    def _by_media(self, media: Numbers) -> set[int]:
        return {place for piece in _pieces(media) for place in self._pictures.get(piece, ())}

    def _by_text(self, text: Numbers) -> Iterable[int]:
        found: Iterable[int] = self._texts.query(_lean(text))
        return found


def _lean(text: Numbers) -> Any:
    from datasketch import LeanMinHash

    return LeanMinHash(seed=1, hashvalues=text, scheme=SCHEME)


def _pieces(media: Numbers) -> Iterator[tuple[int, int, int]]:
    """(number of media, which piece, its bits) of the first hash: one piece more than bits may differ."""
    value, count = int(media["hash"][0]), len(media)
    width = -(-64 // (_BITS + 1))
    for number in range(_BITS + 1):
        yield count, number, value >> (number * width) & ((1 << width) - 1)


def _near(left: tuple[Numbers, Numbers], right: tuple[Numbers, Numbers]) -> bool:
    (text, media), (other_text, other_media) = left, right
    if len(media) != len(other_media) or (media["picture"] != other_media["picture"]).any():
        return False
    if not all(_near_media(one, other) for one, other in zip(media, other_media, strict=True)):
        return False
    return not len(text) or float((text == other_text).mean()) >= _TEXT_SHARE


def _near_media(one: np.void, other: np.void) -> bool:
    differing = (int(one["hash"]) ^ int(other["hash"])).bit_count()
    if not one["picture"]:
        return differing == 0
    return differing <= _BITS and int(np.abs(one["colour"].astype(int) - other["colour"].astype(int)).max()) <= _COLOUR
