"""From options, message files and batch rows to samples that a model can answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError, MediaError, NotPossibleError, UsageError, nearest
from mmtune.data.checks import check_text
from mmtune.data.markers import LIST_KEYS, cut_at_markers
from mmtune.data.media import MediaLookup
from mmtune.data.messages import MediaQueue, RowError, media_lists, parts_of_text, sample_of_messages
from mmtune.data.sample import Media, Sample, Turn

DEFAULT_PROMPT = "What is in this picture?"
_MESSAGES_FIX = 'write {"messages": [{"role": "user", "content": "…"}]}'


@dataclass(frozen=True)
class Reading:
    """How the requests of one model are read.

    Args:
        markers: Modality to its marker in texts, of the model's modalities alone: other markers are plain text.
        keys: Key of a row to the modality whose items it lists.
        raw: Whether the prompt stands exactly as given, so that no marker is added.
        placed: Whether the model has one place for media, where an item belongs without a marker.
        kinds: General kind of media to the modality of the model that takes it, where it has another name.
    """

    markers: Mapping[str, str]
    keys: Mapping[str, str]
    raw: bool = False
    placed: bool = False
    kinds: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, processor: Any, template: str | None) -> Reading:
        """The reading of a loaded model's processor."""
        from mmtune.model.kinds import keys_of, modality_of

        modalities = processor.modalities
        keys = {**LIST_KEYS, **keys_of(modalities)}
        markers = {name: modality.marker for name, modality in modalities.items()}
        own = {kind: modality_of(kind, modalities) for kind in LIST_KEYS.values()}
        kinds = {kind: name for kind, name in own.items() if name is not None}
        return cls(markers, keys, raw=template == "raw", placed=processor.lead is not None, kinds=kinds)

    def named(self, media: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Items by the model's own names; kinds that it does not take keep theirs."""
        found: dict[str, list[Any]] = {}
        for kind, items in media.items():
            if items:
                found.setdefault(self.kinds.get(kind, kind), []).extend(items)
        return found


def prompt_sample(
    prompt: str, media: Mapping[str, Sequence[Any]], reading: Reading, *, id: str = "0", where: str = "--prompt"
) -> Sample:
    """One user turn. Without a marker in the prompt every item gets one, on a line of its own before the text.

    Args:
        media: Modality to items.

    Raises:
        NotPossibleError: The model has no such modality.
        DataError: Markers and items do not match, or the text is none that can be encoded.
    """
    given = reading.named(media)
    _check_modalities(given, reading, where)
    bare = all(modality is None for _, modality in cut_at_markers(prompt, reading.markers))
    if given and bare and (reading.placed or not reading.raw):
        lines = [reading.markers[name] for name, items in given.items() for _ in items]
        prompt = ("" if reading.raw else "\n").join([*lines, prompt])
    queue = MediaQueue(given)
    try:
        check_text(prompt)
        turn = Turn("user", parts_of_text(prompt, queue, reading.markers))
        queue.finish()
    except RowError as error:
        raise DataError(error.message, where=where, fix=error.fix) from error
    return Sample(id, (turn,), where)


def message_sample(body: Any, reading: Reading, *, id: str = "0", where: str, lookup: MediaLookup) -> Sample:
    """A conversation: ``{"messages": [...]}`` with content parts, or markers in texts and a list per modality.

    Args:
        lookup: Where its media may lie.

    Raises:
        DataError: Not such an object, an unknown role or part, markers that do not match media, or a path or URL that
            is refused.
    """
    body = {"messages": body} if isinstance(body, list) else body
    if not isinstance(body, Mapping) or not isinstance(body.get("messages"), list):
        raise DataError("There is no list 'messages'.", where=where, fix=_MESSAGES_FIX)
    try:
        given = reading.named(media_lists(body, reading.keys))
        _check_modalities(given, reading, where)
        sample = sample_of_messages(body["messages"], id=id, media=given, markers=reading.markers, source=where)
        for turn in sample.turns:
            check_text(turn.text)
    except RowError as error:
        raise DataError(error.message, where=where, fix=error.fix) from error
    sample = replace(sample, turns=tuple(_named(turn, reading) for turn in sample.turns))
    _check_modalities({media.modality: [media] for media in sample.media}, reading, where)
    if not sample.turns or sample.turns[-1].role != "user":
        raise DataError("The last message is not the user's.", where=where, fix="end with a message of role user")
    turns = (replace(turn, parts=tuple(_located(part, lookup, where) for part in turn.parts)) for turn in sample.turns)
    return replace(sample, turns=tuple(turns))


def row_sample(row: Mapping[str, Any], reading: Reading, *, id: str, where: str, lookup: MediaLookup) -> Sample:
    """One row of a batch: ``prompt`` with lists of media, or ``messages``. Media alone are asked the default question.

    Raises:
        DataError: Both, neither, another key where the question might be, markers that do not match media, or a path or
            URL that is refused.
    """
    if "messages" in row:
        if "prompt" in row:
            fix = "take one of them out"
            raise DataError("The row has a 'prompt' and 'messages'.", where=where, fix=fix)
        return message_sample(row, reading, id=id, where=where, lookup=lookup)
    prompt = row.get("prompt", DEFAULT_PROMPT)
    if not isinstance(prompt, str):
        raise DataError("'prompt' is no text.", where=where, fix='write {"id": "1", "prompt": "…", "images": ["…"]}')
    try:
        media = media_lists(row, reading.keys)
    except RowError as error:
        raise DataError(error.message, where=where, fix=error.fix) from error
    if "prompt" not in row:
        _check_needs_no_prompt(row, media, reading, where)
    located = {name: [_locate(item, lookup, where) for item in items] for name, items in media.items()}
    return prompt_sample(prompt, located, reading, id=id, where=where)


def _check_needs_no_prompt(row: Mapping[str, Any], media: Mapping[str, Any], reading: Reading, where: str) -> None:
    """The default question is for rows of media alone: elsewhere the real one may stand under another name."""
    others = [key for key in row if key != "id" and key not in reading.keys]
    if not others and any(media.values()):
        return
    message = "The row has no 'prompt' and no 'messages'" + (
        f" beside {', '.join(map(repr, others))}." if others else "."
    )
    guess = nearest("prompt", others)
    fix = f"rename '{guess}' to 'prompt'" if guess else 'write {"id": "1", "prompt": "…", "images": ["…"]}'
    raise DataError(message, where=where, fix=fix)


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
        raise DataError(f"The file cannot be read: {error}.", where=str(path), fix=f"check {option}") from error


def batch_rows(path: Path) -> Iterator[tuple[Any, str, Mapping[str, Any] | DataError]]:
    """The rows of a JSONL file as (id, ``file:line``, row); a broken row is an error in its place.

    The id is the row's own as it stands there, else the number of the line as a text.
    """
    for number, line in enumerate(read_text(path, "--batch").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            row = DataError(f"Broken JSON: {error.msg}.", where=where, fix="write one object a line")
            yield str(number), where, row
            continue
        if isinstance(row, Mapping):
            yield (str(number) if row.get("id") is None else row["id"]), where, row
        else:
            message = "The line is no object."
            yield str(number), where, DataError(message, where=where, fix='write {"id": "1", "prompt": "…"}')


def read_stdin(option: str, items: Sequence[str]) -> list[str | bytes]:
    """The items of an option with ``-`` replaced by the bytes of standard input.

    Raises:
        UsageError: Two of them are ``-``.
        MediaError: Standard input is empty.
    """
    if items.count("-") > 1:
        raise UsageError("Standard input can be read once.", where=f"{option} -", fix="give files instead")
    found = [sys.stdin.buffer.read() if item == "-" else item for item in items]
    if b"" in found:
        raise MediaError("Standard input is empty.", where=f"{option} -", fix=f"mmtune generate {option} - < FILE")
    return found


def check_files(option: str, paths: Sequence[Any]) -> None:
    """Notice missing media before a model is loaded.

    Raises:
        MediaError: No such file; the message names the nearest one.
    """
    for given in paths:
        if not isinstance(given, str) or given.startswith(("data:", "http://", "https://")) or Path(given).exists():
            continue
        folder = Path(given).parent
        siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        guess = nearest(Path(given).name, siblings)
        hint = f" Did you mean '{folder / guess}'?" if guess else ""
        raise MediaError(f"There is no file '{given}'.{hint}", where=option, fix="check the path")


def _check_modalities(media: Mapping[str, Sequence[Any]], reading: Reading, where: str) -> None:
    for name, items in media.items():
        if items and name not in reading.markers:
            raise NotPossibleError(
                f"This model has no modality '{name}'; it has: {', '.join(reading.markers) or 'none'}.",
                where=f"--{name}" if where == "--prompt" else where,
                fix=f"leave the {name} out, or use a model that was trained with this modality",
            )


def _named(turn: Turn, reading: Reading) -> Turn:
    parts = (
        replace(part, modality=reading.kinds.get(part.modality, part.modality)) if isinstance(part, Media) else part
        for part in turn.parts
    )
    return replace(turn, parts=tuple(parts))


def _located(part: Any, lookup: MediaLookup, where: str) -> Any:
    return replace(part, uri=_locate(part.uri, lookup, where)) if isinstance(part, Media) else part


def _locate(item: Any, lookup: MediaLookup, where: str) -> Any:
    """The item with its path looked up: from the request's folder, the media roots, then the working directory."""
    try:
        found = lookup.find(item)
    except RowError as error:
        raise DataError(error.message, where=where, fix=error.fix) from error
    return {"embedded": item, "inline": found.value}.get(found.rule, found.path)
