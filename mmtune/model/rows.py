"""The rules that a row has to keep before it can be encoded, and what is done to one that is too long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from mmtune.core.errors import DataError, UsageError
from mmtune.data.items import settled_item
from mmtune.data.markers import LIST_KEYS
from mmtune.data.messages import MediaQueue, parts_of_text, sample_of_messages
from mmtune.data.sample import Media, Sample, Text, Turn
from mmtune.modalities.base import Modality
from mmtune.model.encoding import IGNORED, Encoded, OverlongError
from mmtune.model.kinds import keys_of
from mmtune.model.tokenization import PieceTokenizer

Overlong = Literal["error", "truncate-text", "drop"]


@contextmanager
def naming(sample: Sample) -> Iterator[None]:
    """Let data errors say which row they come from."""
    try:
        yield
    except DataError as error:
        row = f"row '{sample.id}'" + (f" ({sample.source})" if sample.source else "")
        if error.where is None:
            error.where = row
        elif row not in error.where:
            error.where = f"{row}: {error.where}"
        raise


def after_leading_assistant(sample: Sample) -> tuple[Sample, int]:
    """The row without assistant turns before the first user turn, and how many were left out."""
    opening = [turn for turn in sample.turns[:1] if turn.role == "system"]
    rest = list(sample.turns[len(opening) :])
    dropped = 0
    while rest and rest[0].role == "assistant":
        rest.pop(0)
        dropped += 1
    return (replace(sample, turns=(*opening, *rest)), dropped) if dropped else (sample, 0)


def refuse_empty_answers(sample: Sample) -> None:
    """Raise for a row without answers or with an empty one: neither teaches anything but to stay silent."""
    answers = [turn for turn in sample.turns if turn.role == "assistant"]
    if not answers:
        raise DataError("The row has no answer to train.", fix="give it an answer of the assistant")
    if any(not turn.text.strip() for turn in answers):
        raise DataError("The row has an empty answer.", fix="fill the answer in or leave the row out")


def guarded(turn: Turn, pieces: PieceTokenizer) -> Turn:
    """The turn with its text kept from writing control tokens."""
    parts = tuple(Text(pieces.guard(part.text)) if isinstance(part, Text) else part for part in turn.parts)
    return replace(turn, parts=parts)


def refuse_loose_markers(turns: Sequence[Turn], markers: Mapping[str, str]) -> None:
    """Raise for a marker in the text that stands for no medium."""
    for turn in turns:
        for part in turn.parts:
            for modality, marker in markers.items():
                if isinstance(part, Text) and marker in part.text:
                    raise DataError(
                        f"The text holds the marker {marker}, but there is no {modality} for it.",
                        fix=f"give one {modality} for each marker, or take the marker out of the text",
                    )


def refuse_media_in_answers(turns: Sequence[Turn]) -> None:
    """Raise for a medium, or its marker, in what the assistant says: nothing could produce it."""
    for turn in turns:
        if turn.role == "assistant" and any(isinstance(part, Media) for part in turn.parts):
            raise DataError("An answer of the assistant holds a medium.", fix="move its marker to a turn of the user")


def fitted(encoded: Encoded, max_length: int | None, overlong: Overlong) -> Encoded:
    """The row within the limit.

    Raises:
        OverlongError: It does not fit and may not be cut, or the cut would go through a medium.
        DataError: The cut leaves nothing to train.
    """
    length = len(encoded.input_ids)
    if max_length is None or length <= max_length:
        return encoded
    if overlong != "truncate-text":
        raise OverlongError(
            f"The row has {length} positions, the limit is {max_length}.",
            fix="raise data.max_length, or set data.overlong to truncate-text or drop",
        )
    if encoded.media_end > max_length:
        raise OverlongError(
            f"The row's media reach to position {encoded.media_end}, the limit is {max_length}: "
            "a cut would go through a medium.",
            fix="raise data.max_length or set data.overlong to drop",
        )
    labels = encoded.labels[:max_length]
    targets = sum(label != IGNORED for label in labels)
    if not targets:
        raise DataError(
            f"Cut to {max_length} positions, the row has no token left to train.",
            fix="raise data.max_length or set data.overlong to drop",
        )
    return replace(
        encoded,
        input_ids=encoded.input_ids[:max_length],
        labels=labels,
        num_targets=targets,
        truncated=length - max_length,
    )


def samples_of_call(
    text: str | Sequence[str] | None,
    media: Mapping[str, Any],
    messages: Any,
    modalities: Mapping[str, Modality],
    *,
    placed: bool,
) -> list[Sample]:
    """The prompts of a processor call as samples.

    Args:
        placed: Whether the model has one place for media, where an item belongs without a marker.

    Raises:
        UsageError: Neither or both of text and messages, or media of a kind that the model does not take.
        DataError: Markers that do not match media.
    """
    if (text is None) == (messages is None):
        raise UsageError("Give either text or messages.", fix='for example text="USER: <image>\\nHi ASSISTANT:"')
    keys = keys_of(modalities)
    unknown = [key for key, value in media.items() if value is not None and key not in keys]
    if unknown:
        own = ", ".join(modality.data_key for modality in modalities.values())
        raise UsageError(f"This model does not take {', '.join(unknown)}.", fix=f"it takes: {own or 'text only'}")
    markers = {name: modality.marker for name, modality in modalities.items()}
    if messages is not None:
        talks = messages if messages and isinstance(messages[0], list) else [messages]
        given = _per_prompt(media, keys, len(talks))
        return [
            sample_of_messages(talk, id=str(index), media=given[index], markers=markers)
            for index, talk in enumerate(talks)
        ]
    texts = [text] if isinstance(text, str) else list(text or ())
    lists = _per_prompt(media, keys, len(texts))
    shared = MediaQueue(lists[0]) if len(texts) > 1 and _is_flat(media) else None
    samples = []
    for index, prompt in enumerate(texts):
        queue = shared or MediaQueue(lists[index])
        if placed and shared is None and not any(marker in prompt for marker in markers.values()):
            prompt = "".join(markers[name] for name, items in lists[index].items() for _ in items) + prompt
        samples.append(Sample(str(index), (Turn("user", parts_of_text(prompt, queue, markers)),)))
        if shared is None:
            queue.finish()
    if shared is not None:
        shared.finish()
    return samples


def _is_flat(media: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, list | tuple) and value and isinstance(value[0], list) for value in media.values())


def _per_prompt(media: Mapping[str, Any], keys: Mapping[str, str], count: int) -> list[dict[str, list[Any]]]:
    """One mapping of modality to items for each prompt; flat lists all go to the first."""
    found: list[dict[str, list[Any]]] = [{} for _ in range(max(count, 1))]
    for key, value in media.items():
        if value is None:
            continue
        items = list(value) if isinstance(value, list | tuple) else [value]
        nested = bool(items) and isinstance(items[0], list)
        if nested and len(items) != count:
            raise UsageError(f"{len(items)} lists of {key} for {count} prompts.", fix="give one list for each prompt")
        for index, given in enumerate(items if nested else [items]):
            kind = LIST_KEYS.get(key, keys[key])
            found[index].setdefault(keys[key], []).extend(
                settled_item(kind, item, key) if isinstance(item, str) else item for item in given
            )
    return found
