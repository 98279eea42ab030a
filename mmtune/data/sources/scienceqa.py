"""ScienceQA as published: ``problems.json``, ``pid_splits.json``, ``captions.json`` and ``images/<split>/<id>/``; or as
tables of problems that hold their pictures.

``scienceqa`` writes prompts in the format QCM-ALE without captions; ``scienceqa:QCM-AE,captions`` in another one, with
captions. What stands before the dash is asked: Question, Context (the hint, and the caption), Multiple choices,
Lecture, Explanation; what stands behind it is answered: Answer, Lecture, Explanation.

Source:
    ScienceQA (Lu et al. 2022, arXiv 2209.09513) and LaVIN (arXiv 2305.15023), whose code fills AL with the explanation
    and AE with the lecture, and leaves an empty "BECAUSE:" where a problem has neither; both are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmtune.core.errors import DataError, unknown_name
from mmtune.data.items import RowError, settled_item
from mmtune.data.reading import RawRow
from mmtune.data.sample import Media, Sample, Text, Turn
from mmtune.data.sources import SourceFormat

PROBLEMS, SPLITS, CAPTIONS = "problems.json", "pid_splits.json", "captions.json"
DEFAULT = "QCM-ALE"
_OUTPUTS = ("A", "LA", "EA", "LEA", "ELA", "AL", "AE", "ALE")
_REASONED = ("QCML-A", "QCME-A", "QCMLE-A", "QCLM-A", "QCEM-A", "QCLEM-A", "QCML-AE")
PROMPT_FORMATS = (*(f"{asked}-{output}" for asked in ("CQM", "QCM") for output in (*_OUTPUTS, "AEL")), *_REASONED)
_READ_SPLITS = {"train": "train", "val": "val", "test": "test"}
_LETTERS = "ABCDEFGHIJ"
_CAPTION = "caption"


def question(problem: Mapping[str, Any], prompt_format: str = DEFAULT, *, captions: bool = False) -> str:
    """What is asked, without the ``Response:`` that the template ends it with."""
    asked = prompt_format.split("-")[0]
    context = str(problem.get("hint") or "")
    if captions:
        context = f"{context} {problem.get(_CAPTION) or ''}"
    choices = " ".join(f"({letter}) {text}" for letter, text in zip(_LETTERS, problem["choices"], strict=False))
    reasons = {"L": _text(problem, "lecture"), "E": _text(problem, "solution")}
    named = {
        "Q": f"Question: {problem['question']}",
        "C": f"Context: {context.strip() or 'N/A'}",
        "M": f"Options: {choices}",
    }
    lines, reason = [], " ".join(reasons[part] for part in asked if part in reasons)
    for part in asked:
        if part in named:
            lines.append(named[part])
        elif not any(line.startswith("BECAUSE:") for line in lines):
            lines.append(f"BECAUSE: {reason}")
    return "\n".join(lines).replace("  ", " ").lstrip()


def solution(problem: Mapping[str, Any], prompt_format: str = DEFAULT) -> str:
    """What is answered."""
    output = prompt_format.split("-")[1]
    lecture, explanation = _text(problem, "lecture"), _text(problem, "solution")
    says = f"The answer is {_LETTERS[int(problem['answer'])]}."
    # The published code swaps the two where only one is given.
    reason = {
        "L": lecture,
        "E": explanation,
        "LE": f"{lecture} {explanation}",
        "EL": f"{explanation} {lecture}",
    }
    swapped = {"AL": explanation, "AE": lecture}
    if output == "A":
        text = says
    elif output.startswith("A"):
        text = f"{says} BECAUSE: {swapped.get(output, reason[output[1:]])}"
    else:
        text = f"{reason[output[:-1]]} {says}"
    return text.replace("  ", " ").strip()


def _text(problem: Mapping[str, Any], key: str) -> str:
    """A lecture or solution on one line, as the published code writes it."""
    return str(problem.get(key) or "").replace("\n", "\\n")


def parser(prompt_format: str, *, captions: bool) -> Any:
    """The function that turns a problem into a sample in one of the formats."""

    def parse(row: dict[str, Any], default_id: str) -> Sample:
        missing = [key for key in ("question", "choices", "answer") if row.get(key) is None]
        if missing:
            raise RowError("no_question", f"The problem has no '{missing[0]}'.", fix="copy problems.json again")
        choices, answer = row["choices"], row["answer"]
        known = isinstance(choices, list) and type(answer) is int and 0 <= answer < min(len(choices), len(_LETTERS))
        if not known:
            raise RowError(
                "bad_answer", f"Answer {answer!r} is none of the choices {choices!r}.", fix="copy problems.json again"
            )
        name = str(row.get("id", default_id))
        asked: tuple[Any, ...] = (Text(question(row, prompt_format, captions=captions)),)
        if row.get("image"):
            asked = (Media("image", settled_item("image", row["image"], "image")), *asked)
        extra = {key: row[key] for key in ("subject", "grade", "topic", "hint", "choices", "answer") if key in row}
        told = Text(solution(row, prompt_format))
        return Sample(name, (Turn("user", asked), Turn("assistant", (told,))), extra=extra)

    return parse


def with_options(options: str) -> SourceFormat:
    """The format of ``scienceqa:OPTIONS``.

    Raises:
        UsageError: No such prompt format.
    """
    chosen, captions = DEFAULT, False
    for option in filter(None, options.replace("_", "-").split(",")):
        if option.strip().lower() == "captions":
            captions = True
        elif option.strip().upper() in PROMPT_FORMATS:
            chosen = option.strip().upper()
        else:
            raise unknown_name("prompt format", option, PROMPT_FORMATS, where="--format scienceqa:…")
    return SourceFormat(
        parser(chosen, captions=captions),
        recognises=_recognises,
        claims=claims,
        read=read,
        describe="ScienceQA: problems.json and pid_splits.json",
        variant=with_options,
    )


def _recognises(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("choices"), list) and {"question", "answer", "lecture", "solution"} <= set(row)


def claims(path: Path) -> bool:
    """Whether a path is ScienceQA's folder, or the file of problems in it."""
    folder = path.parent if path.name == PROBLEMS else path
    return all((folder / name).is_file() for name in (PROBLEMS, SPLITS))


def read(path: Path) -> Iterator[RawRow]:
    """The problems of the splits train, val and test, with their captions where there are some.

    Raises:
        DataError: A file that is no JSON object, or a split that names a problem which is not there.
    """
    folder = path.parent if path.name == PROBLEMS else path
    problems, splits = _json(folder / PROBLEMS), _json(folder / SPLITS)
    captions = _json(folder / CAPTIONS, "captions") if (folder / CAPTIONS).is_file() else {}
    number = 0
    for split in _READ_SPLITS:
        for name in _names(splits, split, folder):
            problem = problems.get(str(name))
            if not isinstance(problem, dict):
                raise DataError(
                    f"Split '{split}' names problem {name!r}, which {PROBLEMS} does not hold.",
                    where=str(folder / SPLITS),
                    fix="copy both files again, from one and the same download",
                )
            row = {**problem, "id": str(name)}
            if row.get("image"):
                row["image"] = f"images/{row.get('split', split)}/{name}/{row['image']}"
            yield RawRow(number, number + 1, {**row, _CAPTION: captions.get(str(name), "")}, _READ_SPLITS[split])
            number += 1


def _names(splits: dict[str, Any], split: str, folder: Path) -> list[Any]:
    names = splits.get(split, [])
    if not isinstance(names, list):
        raise DataError(f"Split '{split}' is no list of ids.", where=str(folder / SPLITS), fix="copy it again")
    return names


def _json(path: Path, key: str | None = None) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        value = value if key is None else value[key]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"The file cannot be read: {error}", where=str(path), fix="copy it again") from error
    if not isinstance(value, dict):
        raise DataError("The file is no JSON object.", where=str(path), fix="copy it again")
    return value


FORMAT = with_options("")
