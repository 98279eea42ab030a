"""How questions of public benchmarks are put to a model.

The wording is that of the harnesses whose numbers are compared with: VLMEvalKit's for LLaVA's models (style ``llava``)
and for all others (style ``vlmevalkit``). The conversation around it is that of the model's own template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmtune.data.sample import Media, Part, Sample, Text, Turn

STYLES = ("llava", "vlmevalkit")
SHORT_ANSWER = "Answer the question using a single word or phrase."
CAPTION = (
    "Please describe this image in general. Directly provide the description, do not include prefix like "
    '"This image depicts". '
)
_INSTRUCTIONS = {  # by whether there are options, and whether there is Chinese in the question
    (True, False): "Answer with the option's letter from the given choices directly.",
    (True, True): "请直接回答选项字母。",
    (False, False): "Answer the question directly.",
    (False, True): "请直接回答问题。",
}
_HAN = re.compile("[\u4e00-\u9fff]")
_PLACE = re.compile(r"<image (\d)>")


def choice_prompt(question: str, options: Mapping[str, str], hint: str | None = None, style: str = "llava") -> str:
    """A multiple-choice question; without options it is asked as an open one."""
    lines = [f"{letter}. {text}" for letter, text in options.items()]
    if style == "vlmevalkit":
        head = [f"Hint: {hint}"] if hint else []
        tail = ["Options:", *lines, "Please select the correct answer from the options above. \n"] if lines else [""]
        return "\n".join([*head, f"Question: {question}", *tail])
    body = "\n".join([*([hint] if hint else []), question, *lines])
    chinese = _HAN.search(body) is not None
    return f"{body}\n{_INSTRUCTIONS[bool(lines), chinese]}"


def short_answer_prompt(question: str) -> str:
    """A question that wants a word or phrase."""
    return f"{question}\n{SHORT_ANSWER}"


def question(id: str, prompt: str, pictures: Sequence[Any], *, source: str = "", **extra: Any) -> Sample:
    """A row of a benchmark: its pictures, then its text. ``extra`` is what scoring needs."""
    parts: tuple[Part, ...] = (*(Media("image", picture) for picture in pictures), Text(prompt))
    return Sample(id, (Turn("user", parts),), source, extra)


def interleaved(prompt: str, pictures: Sequence[Any]) -> tuple[Part, ...]:
    """The text with each ``<image N>`` replaced by picture N; all pictures first when there is no such place."""
    if not _PLACE.search(prompt):
        return (*(Media("image", picture) for picture in pictures), Text(prompt))
    parts: list[Part] = []
    for at, piece in enumerate(_PLACE.split(prompt)):
        if at % 2 == 0:
            parts += [Text(piece)] if piece else []
        elif 0 < int(piece) <= len(pictures):
            parts.append(Media("image", pictures[int(piece) - 1]))
    return tuple(parts)
