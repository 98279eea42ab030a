"""MME as it is released: a folder a category, a text of two questions beside each picture.

Pictures and texts lie together, or in ``images/`` and ``questions_answers_YN/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mmtune.core.errors import DataError
from mmtune.evaluation.reading.tables import Row

_TEXTS, _PICTURES = "questions_answers_YN", "images"
_ENDINGS = (".jpg", ".png", ".jpeg")


def question_files(folder: Path, categories: Sequence[str]) -> list[Path]:
    """The texts with questions, in the order of their names; none where ``folder`` holds no folder of a category."""
    found: list[Path] = []
    for category in sorted(categories):
        within = folder / category
        texts = sorted((within / _TEXTS).glob("*.txt")) or sorted(within.glob("*.txt"))
        found += texts
    return found


def rows_of(file: Path, folder: Path) -> Iterator[tuple[Row, list[str]]]:
    """The questions of one text, with the names that their picture may have under ``folder``.

    Raises:
        DataError: A line that is no question and its answer.
    """
    category = file.relative_to(folder).parts[0]
    names = [f"{category}/{place}{file.stem}{end}" for end in _ENDINGS for place in (f"{_PICTURES}/", "")]
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the questions: {error}", where=str(file), fix="copy the file again") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question, tab, answer = line.rpartition("\t")
        if not tab or answer.strip().lower() not in ("yes", "no"):
            raise DataError(
                "The line is no question and its answer.", where=f"{file}:{number}", fix="write QUESTION<tab>Yes or No"
            )
        row = {"category": category, "question": question.strip(), "answer": answer.strip(), "number": number}
        yield row, names
