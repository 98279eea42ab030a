"""The one form that every data source is read into: a conversation of text and media.

This module is a leaf: it imports nothing of mmtune but the errors, so that every floor may use it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mmtune.core.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text."""

    text: str


@dataclass(frozen=True, slots=True)
class Media:
    """One picture, sound, video or document.

    Args:
        modality: Name of the modality that reads it ("image").
        uri: What the modality opens: a path, the bytes of a file, a value that is the item itself (``{"text": …}``),
            or an object in memory (``PIL.Image``).
    """

    modality: str
    uri: Any


Part = Text | Media


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says: text and media in reading order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts joined, without media."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Text):  # nearly all turns; millions are asked
            return self.parts[0].text
        return "".join([part.text for part in self.parts if isinstance(part, Text)])


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation.

    Args:
        id: Name of the row; errors and results carry it.
        turns: The conversation in order.
        source: ``file:line`` (or ``file#index``) that the row was read from.
        extra: Whatever else the row holds, for example ``{"type": "color"}``.
    """

    id: str
    turns: tuple[Turn, ...]
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def media(self) -> tuple[Media, ...]:
        """All media in reading order."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Media))

    @property
    def answer(self) -> str | None:
        """The text of the last turn when the assistant speaks it, which is the gold answer of a benchmark row."""
        last = self.turns[-1] if self.turns else None
        return last.text if last is not None and last.role == "assistant" else None

    def without_answer(self) -> Sample:
        """The same row as a prompt: a last assistant turn is taken off."""
        if self.answer is None:
            return self
        return Sample(self.id, self.turns[:-1], self.source, self.extra)

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back.

        Raises:
            DataError: A medium is an object in memory, which has no JSON form.
        """
        turns = [
            {"role": turn.role, "parts": [_part_to_json(part, self.id) for part in turn.parts]} for turn in self.turns
        ]
        return {"id": self.id, "turns": turns, "source": self.source, "extra": dict(self.extra)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Sample:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: A role or a part that is not known.
        """
        turns = tuple(
            Turn(_role(turn["role"], value), tuple(_part_from_json(part, value) for part in turn["parts"]))
            for turn in value["turns"]
        )
        return cls(str(value["id"]), turns, str(value.get("source", "")), dict(value.get("extra") or {}))


def conversation(*texts: str, id: str = "0", media: Mapping[str, list[Any]] | None = None) -> Sample:
    """A sample of alternating user and assistant texts; all media stand first in the first turn.

    Example:
        ``conversation("What is this?", "A cat.", media={"image": ["cat.png"]})``
    """
    shown = tuple(Media(name, item) for name, items in (media or {}).items() for item in items)
    turns = list(_alternate(texts))
    if turns and shown:
        turns[0] = Turn(turns[0].role, shown + turns[0].parts)
    return Sample(id, tuple(turns))


def _alternate(texts: tuple[str, ...]) -> Iterator[Turn]:
    for index, text in enumerate(texts):
        yield Turn("assistant" if index % 2 else "user", (Text(text),))


def _role(name: str, row: Mapping[str, Any]) -> Role:
    if name not in ROLES:
        raise DataError(f"Unknown role '{name}'.", where=str(row.get("id")), allowed=ROLES, fix="use user or assistant")
    return name  # type: ignore[return-value]


def _part_to_json(part: Part, sample_id: str) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part.uri, bytes | bytearray):
        return {"type": part.modality, "base64": base64.b64encode(part.uri).decode("ascii")}
    if isinstance(part.uri, str):
        return {"type": part.modality, "uri": part.uri}
    if isinstance(part.uri, dict | list):
        return {"type": part.modality, "value": part.uri}
    raise DataError(
        f"A {part.modality} held in memory ({type(part.uri).__name__}) cannot be written as JSON.",
        where=sample_id,
        fix="save it to a file and give its path",
    )


def _part_from_json(part: Mapping[str, Any], row: Mapping[str, Any]) -> Part:
    kind = part.get("type")
    if kind == "text":
        return Text(str(part["text"]))
    if kind and "base64" in part:
        return Media(str(kind), base64.b64decode(part["base64"]))
    if kind and "uri" in part:
        return Media(str(kind), str(part["uri"]))
    if kind and "value" in part:
        return Media(str(kind), part["value"])
    raise DataError(f"Unknown part {dict(part)!r}.", where=str(row.get("id")), fix="give text, uri, value or base64")
