"""Answers of ScienceQA as LLaVA's evaluation reads them, and the official table of categories.

Source:
    LLaVA ``eval_science_qa``; lupantech/ScienceQA ``get_scores``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = "ABCDE"
FAILED = "FAILED"
_STATEMENT = re.compile(r"The answer is ([A-Z]).")  # the dot is any character: one has to follow the letter


def parse_letter(text: str) -> str:
    """The letter that an answer gives, or ``FAILED``."""
    if text in tuple(LETTERS):
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    stated = _STATEMENT.findall(text)
    return stated[0] if len(stated) == 1 else FAILED


def choice_index(letter: str, num_choices: int) -> int:
    """The index of a letter among the choices that a question has, or -1."""
    return LETTERS[:num_choices].index(letter) if letter in tuple(LETTERS[:num_choices]) else -1


def category_groups(problems: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The rows of each column of the official table; text and image contexts overlap."""
    columns = {
        "acc_natural": lambda row: row["subject"] == "natural science",
        "acc_social": lambda row: row["subject"] == "social science",
        "acc_language": lambda row: row["subject"] == "language science",
        "acc_has_text": lambda row: bool(row["hint"]),
        "acc_has_image": lambda row: bool(row["image"]),
        "acc_no_context": lambda row: not row["hint"] and not row["image"],
        "acc_grade_1_6": lambda row: row["grade"] in {f"grade{number}" for number in range(1, 7)},
        "acc_grade_7_12": lambda row: row["grade"] in {f"grade{number}" for number in range(7, 13)},
        "acc_average": lambda row: True,
    }
    return {name: [at for at, row in enumerate(problems) if belongs(row)] for name, belongs in columns.items()}
