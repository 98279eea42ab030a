"""What every row must keep, whatever format it came in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from mmtune.data.messages import RowError
from mmtune.data.sample import Media, Sample, Text, Turn

_PRIVATE = "\ue000"  # kept for the tokeniser's own use


def row_id(row: dict[str, Any], default: str) -> str:
    """The id of a row as text; ``default`` when it has none.

    Raises:
        RowError: An id that is neither text nor number (``bad_id``).
    """
    value = row.get("id", row.get("question_id"))
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError("bad_id", f"The id is {value!r}.", fix="give a text or a number")
    return str(value)


def check_sample(sample: Sample) -> None:
    """Check that a row can be trained.

    Raises:
        RowError: With one of the reasons ``no_turns``, ``bad_unicode``, ``private_character``, ``system_not_first``,
            ``media_in_system``, ``no_user_turn``, ``roles_do_not_alternate``, ``no_answer``, ``empty_answer``,
            ``empty_question``, ``media_in_answer``.
    """
    if not sample.turns:
        raise RowError("no_turns", "The row has no turns.", fix="give at least a question and an answer")
    check_unicode(sample.id)
    for turn in sample.turns:
        for part in turn.parts:
            if isinstance(part, Text):
                check_text(part.text)
                continue
            for text in _texts(part.uri):
                check_unicode(text)
    opening = 1 if sample.turns[0].role == "system" else 0
    if any(turn.role == "system" for turn in sample.turns[opening:]):
        raise RowError("system_not_first", "A system turn stands after the first turn.", fix="put it first, once")
    if opening and any(isinstance(part, Media) for part in sample.turns[0].parts):
        raise RowError("media_in_system", "The system turn holds a medium.", fix="move it to a turn of the user")
    _check_talk(sample, opening)


def check_text(text: str) -> None:
    """Check that a text can be tokenised.

    Raises:
        RowError: ``bad_unicode`` or ``private_character``.
    """
    if text.isascii():
        return
    if _PRIVATE in text:
        raise RowError("private_character", "The text holds the private-use character U+E000.", fix="remove it")
    check_unicode(text)


def check_unicode(text: str) -> None:
    """Check that a text, a name or a path can be encoded.

    Raises:
        RowError: ``bad_unicode``.
    """
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError("bad_unicode", "The text holds half of a surrogate pair.", fix="repair the text") from error


def _texts(item: Any) -> Iterator[str]:
    """Every text in what names a medium or is one."""
    if isinstance(item, str):
        yield item
    elif isinstance(item, Mapping | list):
        for value in item.values() if isinstance(item, Mapping) else item:
            yield from _texts(value)


def _check_talk(sample: Sample, opening: int) -> None:
    turns = list(sample.turns[opening:])
    while turns and turns[0].role == "assistant":  # left out and counted when the row is encoded
        turns.pop(0)
    if not turns:
        raise RowError("no_user_turn", "The row has no turn of the user.", fix="give the question")
    for left, right in pairwise(turns):
        if left.role == right.role:
            raise RowError(
                "roles_do_not_alternate", f"Two turns of the {left.role} follow one another.", fix="join them into one"
            )
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers:
        raise RowError("no_answer", "The row has no answer.", fix="give the assistant's turn")
    if any(_has_media(turn) for turn in answers):
        raise RowError("media_in_answer", "An answer holds a medium.", fix="move it to a turn of the user")
    empty = [turn for turn in turns if not turn.text.strip() and not _has_media(turn)]
    if any(turn.role == "assistant" for turn in empty):
        raise RowError("empty_answer", "An answer is empty.", fix="fill it in or leave the row out")
    if empty:
        raise RowError("empty_question", "A turn of the user is empty.", fix="fill it in or leave the row out")


def _has_media(turn: Turn) -> bool:
    return any(isinstance(part, Media) for part in turn.parts)
