"""Cutting long texts where sentences end, so that every piece fits an encoder and nothing is lost.

A sentence ends at ``.``, ``!``, ``?``, ``…`` or their full-width forms, with closing quotes and brackets, before blanks
and anything but a small letter; or at an empty line. Common abbreviations and single initials end none. Where the rules
are wrong a chunk ends at another place, but no character is lost or changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_END = re.compile(r"""(?:[.!?…]+["'”’)\]]*(?=\s)|[。！？]+[”’」』）]*|\n[ \t]*(?=\n))\s*""")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|cf|al|Fig|Eq|No|Vol|pp|approx)\.$"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, with the blanks behind them; joined they are the text again."""
    found, start = [], 0
    for end in _END.finditer(text):
        before = text[start : end.start()] + text[end.start() : end.end()].rstrip()
        follows = text[end.end() : end.end() + 1]
        if "\n\n" not in end.group() and (_ABBREVIATION.search(before[-12:]) or follows.islower()):
            continue
        found.append(text[start : end.end()])
        start = end.end()
    return [*found, text[start:]] if start < len(text) else found


def split_document(text: str, count: Callable[[str], int], limit: int) -> list[str]:
    """Pack sentences into as few chunks in a row as hold at most ``limit`` tokens each.

    A sentence that does not fit by itself is cut between words, a word that does not fit between characters.

    Args:
        count: Tokens of a text, special tokens included.
        limit: Most tokens of a chunk.

    Returns:
        Chunks that joined are the text, none of them empty or blank but for a blank text.
    """
    chunks: list[str] = []
    for piece in _fitting(split_sentences(text), count, limit):
        if chunks and count(chunks[-1] + piece) <= limit:
            chunks[-1] += piece
        elif chunks and not piece.strip():
            chunks[-1] += piece  # blanks alone make no chunk
        else:
            chunks.append(piece)
    return chunks


def _fitting(pieces: list[str], count: Callable[[str], int], limit: int) -> list[str]:
    """The pieces, those that are too long cut again and again into halves."""
    found: list[str] = []
    for piece in pieces:
        if len(piece) < 2 or count(piece) <= limit:
            found.append(piece)
        else:
            found += _fitting(_halves(piece), count, limit)
    return found


def _halves(piece: str) -> list[str]:
    """A piece cut behind the blanks nearest to its middle, or at its middle where it has none."""
    middle = len(piece) // 2
    blanks = [found.end() for found in re.finditer(r"\s+", piece) if 0 < found.end() < len(piece)]
    at = min(blanks, key=lambda end: abs(end - middle), default=middle)
    return [piece[:at], piece[at:]]
