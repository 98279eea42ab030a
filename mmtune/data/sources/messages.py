"""Chat messages: ``{"id"?, "messages": [{"role", "content"}], "images"?: [path]}``, as chat APIs have them.

``content`` is a text, in which a marker such as ``<image>`` stands for the next item of the row's list, or a list of
parts: ``{"type": "text", "text"}``, ``{"type": "image_url", "image_url": {"url"}}`` or ``{"type": "image", "image"}``.
"""

from __future__ import annotations

from typing import Any

from mmtune.data.checks import row_id
from mmtune.data.markers import LIST_KEYS, markers_of
from mmtune.data.messages import MediaQueue, media_lists, turns_of_messages
from mmtune.data.sample import Sample
from mmtune.data.sources import SourceFormat

_OWN_KEYS = {"id", "messages", *LIST_KEYS}


def parse(row: dict[str, Any], default_id: str) -> Sample:
    """One row as a sample; media keep the paths that the row has.

    Raises:
        RowError: With the reason ``no_turns``, ``bad_turn``, ``unknown_role``, ``bad_content``, ``bad_part``,
            ``unknown_part``, ``markers_exceed_media``, ``media_exceed_markers``, ``bad_media_field``,
            ``empty_media_path`` or ``bad_id``.
    """
    name = row_id(row, default_id)
    queue = MediaQueue(media_lists(row))
    turns = turns_of_messages(row.get("messages"), queue, markers_of(row))
    queue.finish()
    return Sample(name, turns, extra={key: value for key, value in row.items() if key not in _OWN_KEYS})


FORMAT = SourceFormat(
    parse,
    recognises=lambda row: "messages" in row,
    describe="chat messages as the OpenAI API has them",
    columns=("messages",),
)
