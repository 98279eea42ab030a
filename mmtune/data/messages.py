"""Chat messages to turns: plain text with markers and lists of media, or content parts as the OpenAI API has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmtune.data.items import RowError, may_be_text, settled_item, settled_list
from mmtune.data.markers import ALL_MARKERS, LIST_KEYS, MARKERS, cut_at_markers
from mmtune.data.sample import ROLES, Media, Part, Sample, Text, Turn

SPEAKERS: dict[str, str] = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "developer": "system",
    **{role: role for role in ROLES},
}
"""Every name of a speaker that is understood, to its role."""


class MediaQueue:
    """The media of a row, handed out in order as their markers are met."""

    def __init__(self, media: Mapping[str, Sequence[Any]]) -> None:
        self._given = {name: len(items) for name, items in media.items()}
        self._left = {name: list(items) for name, items in media.items()}
        self._asked: dict[str, int] = {}

    def take(self, modality: str) -> Media:
        """The next item of a modality.

        Raises:
            RowError: None is left (``markers_exceed_media``).
        """
        self._asked[modality] = self._asked.get(modality, 0) + 1
        left = self._left.get(modality)
        if not left:
            raise RowError(
                "markers_exceed_media",
                f"Marker {ALL_MARKERS.get(modality, modality)} number {self._asked[modality]}, "
                f"but the row has {self._given.get(modality, 0)} {modality} items.",
                fix="give one item for each marker, or take the marker out of the text",
            )
        return Media(modality, left.pop(0))

    def finish(self) -> None:
        """Check that nothing is left over.

        Raises:
            RowError: An item without a marker (``media_exceed_markers``).
        """
        for modality, left in self._left.items():
            if left:
                raise RowError(
                    "media_exceed_markers",
                    f"{self._given[modality]} {modality} items, but {self._asked.get(modality, 0)} markers "
                    f"{ALL_MARKERS.get(modality, modality)}.",
                    fix="write one marker for each item into the text",
                )


def parts_of_text(text: str, queue: MediaQueue, markers: Mapping[str, str] = MARKERS) -> tuple[Part, ...]:
    """A text with markers as parts, each marker with its item from the queue.

    Raises:
        RowError: More markers than items.
    """
    cut = cut_at_markers(text, markers)
    return tuple([Text(piece) if modality is None else queue.take(modality) for piece, modality in cut])


def media_lists(row: Mapping[str, Any], keys: Mapping[str, str] = LIST_KEYS) -> dict[str, list[Any]]:
    """The media lists of a row by modality; a single item stands for a list of one, null for none.

    Raises:
        RowError: A value that is no item and no list of items (``bad_media_field``), or an empty path.
    """
    found: dict[str, list[Any]] = {}
    for key, modality in keys.items():
        value = row.get(key)
        if value is not None:
            _refuse_list_as_text(modality, value, key)
            found.setdefault(modality, []).extend(settled_list(LIST_KEYS.get(key, modality), value, key))
    return found


def _refuse_list_as_text(modality: str, value: Any, key: str) -> None:
    if isinstance(value, str) and not may_be_text(modality) and value.startswith("[") and value.endswith("]"):
        raise RowError(
            "list_as_text",
            f"'{key}' is a text that looks like a list: {value[:60]}",
            fix=f"write the list itself: row['{key}'] = ast.literal_eval(row['{key}'])",
        )


def turns_of_messages(messages: Any, queue: MediaQueue, markers: Mapping[str, str] = MARKERS) -> tuple[Turn, ...]:
    """The turns of a list of ``{"role", "content"}``.

    Args:
        queue: Media that markers in the text and content parts without a path of their own refer to.

    Raises:
        RowError: Anything else than such a list; see the reason codes in :mod:`mmtune.data.sources`.
    """
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        raise RowError(
            "messages_as_text",
            "'messages' is a text that holds JSON.",
            fix="write the list itself: row['messages'] = json.loads(row['messages'])",
        )
    if not isinstance(messages, list):
        raise RowError(
            "no_turns", f"'messages' is {type(messages).__name__}, not a list.", fix="give a list of messages"
        )
    return tuple(_turn(message, index, queue, markers) for index, message in enumerate(messages))


def sample_of_messages(
    messages: Any,
    *,
    id: str = "0",
    media: Mapping[str, Sequence[Any]] | None = None,
    markers: Mapping[str, str] = MARKERS,
    source: str = "",
) -> Sample:
    """A sample from chat messages.

    Args:
        messages: ``[{"role", "content"}]``; content is a text with markers or a list of content parts.
        media: Items that the markers stand for, by modality.

    Raises:
        RowError: Messages that cannot be read, or markers that do not match media.
    """
    queue = MediaQueue(media or {})
    turns = turns_of_messages(messages, queue, markers)
    queue.finish()
    return Sample(id, turns, source)


def _turn(message: Any, index: int, queue: MediaQueue, markers: Mapping[str, str]) -> Turn:
    if not isinstance(message, Mapping):
        raise RowError(
            "bad_turn", f"Message {index + 1} is {message!r}, not an object.", fix='give {"role", "content"}'
        )
    role = SPEAKERS.get(str(message.get("role")))
    if role is None:
        raise RowError(
            "unknown_role", f"Message {index + 1} has the role {message.get('role')!r}.", fix=f"use {', '.join(ROLES)}"
        )
    content = message.get("content")
    if isinstance(content, str):
        return Turn(role, parts_of_text(content, queue, markers))  # type: ignore[arg-type]
    if isinstance(content, list):
        return Turn(role, _on_own_lines(_content_parts(content, index, queue, markers)))  # type: ignore[arg-type]
    raise RowError(
        "bad_content", f"Message {index + 1} has the content {content!r}.", fix="give a text or a list of content parts"
    )


def _content_parts(content: list[Any], index: int, queue: MediaQueue, markers: Mapping[str, str]) -> Iterator[Part]:
    for part in content:
        if isinstance(part, str):
            yield from parts_of_text(part, queue, markers)
            continue
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise RowError("bad_part", f"Message {index + 1} has the part {part!r}.", fix='give {"type", …}')
        kind = part["type"]
        if kind in ("text", "input_text"):
            if not isinstance(part.get("text"), str):
                raise RowError("bad_part", f"A text part of message {index + 1} has no text.", fix='give "text"')
            yield from parts_of_text(part["text"], queue, markers)
            continue
        modality = kind.removeprefix("input_").removesuffix("_url")
        if modality not in MARKERS and modality not in markers:
            raise RowError(
                "unknown_part",
                f"Message {index + 1} has a part of type '{kind}'.",
                fix=f"use text, image_url, or one of {', '.join({**MARKERS, **markers})}",
            )
        uri = _uri(part, kind, modality)
        yield queue.take(modality) if uri is None else Media(modality, uri)


def _uri(part: Mapping[str, Any], kind: str, modality: str) -> Any:
    """The item of a content part; None when it refers to the row's list."""
    if "array" in part:
        return settled_item(modality, {key: value for key, value in part.items() if key != "type"}, kind)
    for key in (kind, modality, "url", "path", "text"):
        value = part.get(key)
        if value is not None:
            settles = isinstance(value, str | bytes | Mapping | list)
            return settled_item(modality, value, kind) if settles else value  # a picture in memory is one already
    return None


def _on_own_lines(parts: Iterator[Part]) -> tuple[Part, ...]:
    """Content parts carry no blanks between them: each medium is put on a line of its own."""
    found: list[Part] = []
    for part in parts:
        if found and (isinstance(part, Media) or isinstance(found[-1], Media)) and not _line_break(found[-1], part):
            found.append(Text("\n"))
        found.append(part)
    return tuple(found)


def _line_break(left: Part, right: Part) -> bool:
    return (isinstance(left, Text) and left.text.endswith("\n")) or (
        isinstance(right, Text) and right.text.startswith("\n")
    )
