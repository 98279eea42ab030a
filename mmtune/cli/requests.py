"""From options, message files and batch rows to samples that a model can answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError, MediaError, NotPossibleError, nearest
from mmtune.data.sample import Media, Sample, Text, Turn

DEFAULT_PROMPT = "What is in this picture?"
_URL_KEYS = ("url", "path", "data", "uri")


@dataclass(frozen=True)
class Kind:
    """What a request has to know of a modality: its marker in texts and the key of its items in a row."""

    name: str
    marker: str
    data_key: str


def kinds_of(processor: Any) -> list[Kind]:
    """The modalities of a loaded model."""
    return [Kind(name, modality.marker, modality.data_key) for name, modality in processor.modalities.items()]


def prompt_sample(
    prompt: str, media: Mapping[str, Sequence[Any]], kinds: Sequence[Kind], *, id: str = "0", where: str = "--prompt"
) -> Sample:
    """One user turn. Without a marker in the prompt every item gets one, on a line of its own before the text.

    Args:
        media: Modality name to items.

    Raises:
        NotPossibleError: The model has no such modality.
        DataError: Markers and items do not match.
    """
    check_kinds(media, kinds)
    given = {name: list(items) for name, items in media.items() if items}
    if given and not any(kind.marker in prompt for kind in kinds):
        lines = [kind.marker for kind in kinds for _ in given.get(kind.name, ())]
        prompt = "\n".join([*lines, prompt])
    turns = (Turn("user", tuple(_split(prompt, given, kinds))),)
    _check_used(given, where, kinds)
    return Sample(id, turns, where)


def message_sample(body: Any, kinds: Sequence[Kind], *, id: str = "0", where: str, folder: Path) -> Sample:
    """A conversation: ``{"messages": [...]}`` with content parts, or markers in texts and a list per modality.

    Raises:
        DataError: Not such an object, an unknown role or part, or markers that do not match media.
    """
    body = {"messages": body} if isinstance(body, list) else body
    if not isinstance(body, Mapping) or not isinstance(body.get("messages"), list):
        raise DataError("No list 'messages'.", where=where, fix='write {"messages": [{"role": "user", "content": …}]}')
    given = {kind.name: _items(body, kind.data_key, where, folder) for kind in kinds}
    turns = tuple(
        _turn(message, given, kinds, f"{where} message {place}", folder)
        for place, message in enumerate(body["messages"])
    )
    _check_used(given, where, kinds)
    if not turns or turns[-1].role != "user":
        raise DataError("The last message is not the user's.", where=where, fix="end with a message of role user")
    return Sample(id, turns, where)


def row_sample(row: Mapping[str, Any], kinds: Sequence[Kind], *, id: str, where: str, folder: Path) -> Sample:
    """One row of a batch: ``prompt`` with lists of media, or ``messages``."""
    if "messages" in row:
        return message_sample(row, kinds, id=id, where=where, folder=folder)
    prompt = row.get("prompt", DEFAULT_PROMPT)
    if not isinstance(prompt, str):
        raise DataError(
            "'prompt' is no text.", where=where, fix='write {"id": "1", "prompt": "…", "images": ["a.png"]}'
        )
    media = {kind.name: _items(row, kind.data_key, where, folder) for kind in kinds}
    return prompt_sample(prompt, media, kinds, id=id, where=where)


def read_json(path: Path, option: str) -> Any:
    """The value of a JSON file.

    Raises:
        DataError: Missing, unreadable or broken, with the line.
    """
    try:
        return json.loads(read_text(path, option))
    except json.JSONDecodeError as error:
        raise DataError(f"Broken JSON: {error.msg}.", where=f"{path}:{error.lineno}", fix="mend this line") from error


def read_text(path: Path, option: str) -> str:
    """The text of a file named on the command line.

    Raises:
        DataError: Missing or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot be read: {error}.", where=str(path), fix=f"check {option}") from error


def batch_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | DataError]]:
    """The rows of a JSONL file with their ids; a broken row is an error in its place."""
    for number, line in enumerate(read_text(path, "--batch").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield str(number), DataError(f"Broken JSON: {error.msg}.", where=where, fix="write one object a line")
            continue
        if isinstance(row, Mapping):
            yield str(row.get("id", number)), {**row, "_where": where}
        else:
            yield str(number), DataError("The line is no object.", where=where, fix='write {"id": …, "prompt": …}')


def check_kinds(media: Mapping[str, Sequence[Any]], kinds: Sequence[Kind]) -> None:
    """Refuse media of a modality that the model does not have.

    Raises:
        NotPossibleError: Naming the modalities it has.
    """
    known = [kind.name for kind in kinds]
    for name, items in media.items():
        if items and name not in known:
            raise NotPossibleError(
                f"This model has no modality '{name}'; it has: {', '.join(known) or 'none'}.",
                where=f"--{name}",
                fix=f"leave --{name} out, or use a model that was trained with it",
            )


def check_files(option: str, paths: Sequence[str]) -> None:
    """Notice missing media before a model is loaded.

    Raises:
        MediaError: No such file; the message names the nearest one.
    """
    for given in paths:
        path = Path(given)
        if given == "-" or given.startswith(("data:", "http://", "https://")) or path.exists():
            continue
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        guess = nearest(path.name, siblings)
        hint = f" Did you mean '{path.parent / guess}'?" if guess else ""
        raise MediaError(f"There is no file '{given}'.{hint}", where=option, fix="check the path")


def _turn(message: Any, given: dict[str, list[Any]], kinds: Sequence[Kind], where: str, folder: Path) -> Turn:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ("system", "user", "assistant"):
        raise DataError(f"Unknown role {role!r}.", where=where, fix="use system, user or assistant")
    content = message.get("content")
    if isinstance(content, str):
        return Turn(role, tuple(_split(content, given, kinds, where)))
    if not isinstance(content, list):
        raise DataError("'content' is neither text nor a list of parts.", where=where, fix="write a text or parts")
    parts: list[Text | Media] = []
    for part in content:
        parts += _part(part, given, kinds, where, folder)
    return Turn(role, tuple(parts))


def _part(
    part: Any, given: dict[str, list[Any]], kinds: Sequence[Kind], where: str, folder: Path
) -> list[Text | Media]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return _split(part["text"], given, kinds, where)
    for known in kinds:
        if kind not in (known.name, f"{known.name}_url", f"input_{known.name}"):
            continue
        value = part.get(kind, part)
        if isinstance(value, Mapping):
            value = next((value[key] for key in _URL_KEYS if isinstance(value.get(key), str)), None)
        if isinstance(value, str):
            return [Media(known.name, _locate(value, folder))]
    allowed = ["text", *(f"{known.name}_url" for known in kinds)]
    fix = f"use parts of type {', '.join(allowed)}"
    raise DataError(f"A part of type {kind!r} is not understood.", where=where, fix=fix, allowed=allowed)


def _split(
    text: str, given: dict[str, list[Any]], kinds: Sequence[Kind], where: str = "--prompt"
) -> list[Text | Media]:
    """Text with markers as parts; takes the items out of ``given`` in order."""
    by_marker = {kind.marker: kind.name for kind in kinds}
    if not by_marker:
        return [Text(text)]
    parts: list[Text | Media] = []
    for piece in re.split(f"({'|'.join(map(re.escape, by_marker))})", text):
        name = by_marker.get(piece)
        if name is None:
            parts += [Text(piece)] if piece else []
        elif given.get(name):
            parts.append(Media(name, given[name].pop(0)))
        else:
            fix = f"give one {name} for each {piece}, or take the marker out"
            raise DataError(f"There are more {piece} markers than items.", where=where, fix=fix)
    return parts


def _check_used(given: Mapping[str, Sequence[Any]], where: str, kinds: Sequence[Kind]) -> None:
    markers = {kind.name: kind.marker for kind in kinds}
    for name, rest in given.items():
        if rest:
            message = f"{len(rest)} of the {name} items have no {markers[name]} marker in the text."
            raise DataError(message, where=where, fix=f"write {markers[name]} once for each item")


def _items(row: Mapping[str, Any], key: str, where: str, folder: Path) -> list[Any]:
    items = row.get(key) or []
    items = [items] if isinstance(items, str) else items
    if not isinstance(items, list):
        raise DataError(f"'{key}' is no list.", where=where, fix=f'write "{key}": ["a.png"]')
    return [_locate(item, folder) if isinstance(item, str) else item for item in items]


def _locate(item: str, folder: Path) -> str:
    """A relative path is looked up from the request's folder, then from the working directory."""
    if item.startswith("data:") or not (folder / item).is_file():
        return item
    return str(folder / item)
