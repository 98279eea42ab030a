"""A few rows as people see them: pictures, the question, the right answer and what models said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmtune.data.sample import Sample
from mmtune.report.page import picture_uri


@dataclass(frozen=True, slots=True)
class Shown:
    """One card of a gallery.

    Args:
        pictures: Data URIs.
        question: The user's last turn; ``history`` holds what was said before it.
        gold: The right answer, if known.
        answers: Who said what, with whether it is right (None when nobody can tell).
        others: Media that cannot be drawn, as ``modality: name``.
    """

    id: str
    pictures: tuple[str, ...]
    question: str
    gold: str | None = None
    answers: tuple[tuple[str, str, bool | None], ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ()
    tags: tuple[str, ...] = field(default=())


def show(sample: Sample, answers: Mapping[str, str] | None = None, right: Mapping[str, bool] | None = None) -> Shown:
    """A card of one sample.

    Args:
        answers: Texts by the name of who gave them.
        right: Whether each of them is right.
    """
    prompt = sample.without_answer()
    media = sample.media
    pictures = [picture_uri(item.uri) for item in media if item.modality == "image"]
    others = [f"{item.modality}: {_name(item.uri)}" for item in media if item.modality != "image"]
    verdicts = right or {}
    kind = sample.extra.get("type")
    return Shown(
        id=sample.id,
        pictures=tuple(uri for uri in pictures if uri),
        question=prompt.turns[-1].text.strip() if prompt.turns else "",
        gold=sample.answer,
        answers=tuple((name, text, verdicts.get(name)) for name, text in (answers or {}).items()),
        history=tuple((turn.role, turn.text.strip()) for turn in prompt.turns[:-1]),
        others=tuple(others),
        tags=(str(kind).replace("_", " "),) if kind is not None else (),
    )


def _name(uri: Any) -> str:
    return uri.rsplit("/", 1)[-1] if isinstance(uri, str) else type(uri).__name__


def spread(count: int, total: int) -> list[int]:
    """``count`` indexes spread evenly over ``total`` rows."""
    if total <= count:
        return list(range(total))
    return [index * total // count for index in range(count)]


def pick(items: Sequence[Any], wrong: Sequence[bool], count: int) -> list[int]:
    """Indexes of up to ``count`` items for a gallery, at most half of them wrong ones, spread over the rows."""
    bad = [index for index in range(len(items)) if wrong[index]]
    good = [index for index in range(len(items)) if not wrong[index]]
    num_bad = min(len(bad), max(count // 3, count - len(good)))
    chosen = [bad[place] for place in spread(num_bad, len(bad))]
    chosen += [good[place] for place in spread(count - len(chosen), len(good))]
    return sorted(chosen)
