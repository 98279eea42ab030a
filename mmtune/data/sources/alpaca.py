"""Alpaca's format: ``{"instruction", "input"?, "output", "system"?, "history"?, "image(s)"?}``.

Source:
    Stanford Alpaca (Taori et al. 2023); ``history`` (earlier pairs of question and answer) as later data sets have it.
"""

from __future__ import annotations

from typing import Any

from mmtune.data.checks import row_id
from mmtune.data.markers import LIST_KEYS, markers_of
from mmtune.data.messages import MediaQueue, RowError, media_lists, parts_of_text
from mmtune.data.sample import Sample, Text, Turn
from mmtune.data.sources import SourceFormat

_OWN_KEYS = {"id", "instruction", "input", "output", "system", "history", *LIST_KEYS}


def parse(row: dict[str, Any], default_id: str) -> Sample:
    """One row as a sample: instruction and input, on lines of their own, are the question.

    Media without a marker stand before the first question.

    Raises:
        RowError: ``no_instruction``, ``no_output``, ``text_expected``, ``bad_history``, or what the media may lack.
    """
    name = row_id(row, default_id)
    instruction, given, output = (_text(row, key) for key in ("instruction", "input", "output"))
    if instruction is None and given is None:
        raise RowError("no_instruction", "The row has no 'instruction'.", fix="give the question")
    if output is None:
        raise RowError("no_output", "The row has no 'output'.", fix="give the answer")
    question = "\n".join(part for part in (instruction, given) if part)
    texts = [*_history(row), question]
    listed, markers = media_lists(row), markers_of(row)
    if not any(markers[modality] in text for modality in listed for text in texts):
        texts[0] = "".join(f"{markers[modality]}\n" * len(items) for modality, items in listed.items()) + texts[0]
    queue = MediaQueue(listed)
    turns = [
        Turn("assistant" if index % 2 else "user", parts_of_text(text, queue, markers))
        for index, text in enumerate([*texts, output])
    ]
    queue.finish()
    system = _text(row, "system")
    opening = [Turn("system", (Text(system),))] if system else []
    extra = {key: value for key, value in row.items() if key not in _OWN_KEYS}
    return Sample(name, (*opening, *turns), extra=extra)


def _text(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value
    raise RowError("text_expected", f"'{key}' is {value!r}, which is no text.", fix=f"give '{key}' as a text")


def _history(row: dict[str, Any]) -> list[str]:
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    ):
        raise RowError("bad_history", "'history' is no list of [question, answer].", fix="give pairs of texts")
    return [text for pair in pairs for text in pair]


FORMAT = SourceFormat(
    parse,
    recognises=lambda row: "output" in row and ("instruction" in row or "input" in row),
    describe="Alpaca: instruction, input and output",
    columns=("instruction", "input", "output"),
)
