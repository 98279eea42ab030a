"""Where media stand in a prompt: among a method's own texts around each, or all at the one place that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mmtune.core.errors import DataError
from mmtune.data.sample import Media, Part, Text, Turn
from mmtune.methods.base import Frame, Lead
from mmtune.model.rendering import Segment, Template, marker_of


def framed(markers: Mapping[str, str], frame: Frame | None, form: Template, *, generate: bool) -> Mapping[str, str]:
    """What a prompt format writes for an item of each modality: its marker, and the texts that a method has around."""
    if frame is None or not form.frames(generate=generate):
        return markers
    return {name: f"{frame.before}{marker}{frame.after}" for name, marker in markers.items()}


def place(
    turns: Sequence[Turn], lead: Lead, form: Template, markers: Mapping[str, str]
) -> tuple[list[Segment], tuple[Turn, ...]]:
    """Take the item of a conversation out of its turns.

    A format that puts markers at the head of their turn takes the item from anywhere in the first turn of the user. One
    that leaves them where they are takes it from the very beginning only.

    Returns:
        The segments that come first, each tokenised by itself, and the turns without the item.

    Raises:
        DataError: Several items, or one that stands elsewhere.
    """
    found = [
        (at, index, part)
        for at, turn in enumerate(turns)
        for index, part in enumerate(turn.parts)
        if isinstance(part, Media)
    ]
    if not found:
        return [Segment(lead.absent, apart=True)], tuple(turns)
    if len(found) > 1:
        raise DataError(
            f"The row has {len(found)} media; this method has one place, for one.",
            fix="leave one of them, or use a method that takes several, for example llava",
        )
    at, index, item = found[0]
    parts = turns[at].parts
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), 0)
    if at != first or not (form.media_first or index == 0):
        raise DataError(
            f"The {item.modality} stands elsewhere than at the beginning of the first turn of the user, its one place.",
            fix="move it there; a prompt of template 'raw' needs no marker",
        )
    rest = _joined(parts[:index], parts[index + 1 :]) if form.media_first else parts[1:]
    marker = Segment(marker_of(item.modality, markers), apart=True)
    kept = (*turns[:at], replace(turns[at], parts=rest), *turns[at + 1 :])
    return [Segment(lead.present, apart=True), marker], kept


def opened(segments: Sequence[Segment], ahead: Sequence[Segment], bos: str | None) -> list[Segment]:
    """The segments with others ahead of them, but after a BOS that the format itself writes."""
    first = segments[0].text if segments else ""
    if not bos or not first.startswith(bos):
        return [*ahead, *segments]
    rest = replace(segments[0], text=first.removeprefix(bos))
    return [Segment(bos), *ahead, rest, *segments[1:]]


def _joined(before: Sequence[Part], after: Sequence[Part]) -> tuple[Part, ...]:
    """The text around a marker that is taken out, without the blanks and line breaks beside it."""
    left = "".join(part.text for part in before if isinstance(part, Text)).rstrip()
    right = "".join(part.text for part in after if isinstance(part, Text)).lstrip()
    return (Text(f"{left} {right}" if left and right else left + right),)
