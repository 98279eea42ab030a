"""LLaVA's format: ``{"id", "image"?, "conversations": [{"from": "human" | "gpt", "value"}]}``.

Source:
    LLaVA 1.2.2 (Liu et al. 2023). ``image`` may also be a list, with one ``<image>`` marker for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmtune.data.checks import row_id
from mmtune.data.markers import LIST_KEYS, markers_of
from mmtune.data.messages import SPEAKERS, MediaQueue, RowError, media_lists, parts_of_text
from mmtune.data.sample import Sample, Turn
from mmtune.data.sources import SourceFormat

_OWN_KEYS = {"id", "conversations", *LIST_KEYS}


def parse(row: dict[str, Any], default_id: str) -> Sample:
    """One row as a sample; media keep the paths that the row has.

    Raises:
        RowError: With the reason ``no_conversations``, ``no_turns``, ``bad_turn``, ``unknown_role``, ``bad_content``,
            ``markers_exceed_media``, ``media_exceed_markers``, ``bad_media_field``, ``empty_media_path``, ``bad_id``,
            ``conversations_as_text``, ``turn_of_messages`` or ``list_for_text``.
    """
    name = row_id(row, default_id)
    talk = row.get("conversations")
    if isinstance(talk, str) and talk.lstrip().startswith("["):
        raise RowError(
            "conversations_as_text",
            "'conversations' is a text that holds JSON.",
            fix="write the list itself: row['conversations'] = json.loads(row['conversations'])",
        )
    if not isinstance(talk, list):
        raise RowError("no_conversations", "The row has no list 'conversations'.", fix="give the turns")
    queue = MediaQueue(media_lists(row))
    markers = markers_of(row)
    turns = tuple(_turn(turn, index, queue, markers) for index, turn in enumerate(talk))
    queue.finish()
    return Sample(name, turns, extra={key: value for key, value in row.items() if key not in _OWN_KEYS})


def _turn(turn: Any, index: int, queue: MediaQueue, markers: Mapping[str, str]) -> Turn:
    if not isinstance(turn, dict):
        raise RowError("bad_turn", f"Turn {index + 1} is {turn!r}, not an object.", fix='give {"from", "value"}')
    if "from" not in turn and "role" in turn:
        raise RowError(
            "turn_of_messages",
            f"Turn {index + 1} has 'role' where 'from' belongs.",
            fix="rename 'conversations' to 'messages'",
        )
    role = SPEAKERS.get(str(turn.get("from")))
    if role is None:
        raise RowError("unknown_role", f"Turn {index + 1} is from {turn.get('from')!r}.", fix="use human or gpt")
    value = turn.get("value")
    if isinstance(value, list):
        raise RowError(
            "list_for_text",
            f"Turn {index + 1} has a list as its value, not a text.",
            fix="join it: turn['value'] = ' '.join(turn['value'])",
        )
    if not isinstance(value, str):
        raise RowError("bad_content", f"Turn {index + 1} has the value {value!r}, which is no text.", fix="give a text")
    return Turn(role, parts_of_text(value, queue, markers))  # type: ignore[arg-type]


FORMAT = SourceFormat(
    parse,
    recognises=lambda row: "conversations" in row,
    describe="LLaVA: conversations of human and gpt",
    columns=("conversations",),
)
