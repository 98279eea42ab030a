"""Answers of visual questions in the form that is compared, in the four variants in use.

All share three steps: blanks, punctuation, then digits, articles and contractions. They differ in what becomes of
periods and in one step before. Source: the official VQA evaluation; the m4c evaluator of TextVQA; VLMEvalKit.
"""

from __future__ import annotations

import re

from mmtune.evaluation.scorers.contractions import ARTICLES, CONTRACTIONS, NUMBERS

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_GROUPED = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_LONE_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
_MOST_PERIODS = 32  # the references pass a flag where the count of replacements belongs; its value is 32


def official(text: str) -> str:
    """The official VQA evaluation's form; also lmms-eval's for VQAv2."""
    return _digits_and_articles(_punctuation(_blanks(text), _PERIOD))


def m4c(text: str) -> str:
    """The form of EvalAI's processor in the m4c evaluator, which TextVQA and LLaVA's converters use."""
    words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return official(words.strip())


def vlmevalkit(text: str) -> str:
    """VLMEvalKit's form: a period beside a digit on either side stays."""
    return _digits_and_articles(_punctuation(_blanks(text), _LONE_PERIOD))


def vlmevalkit_punctuation(text: str) -> str:
    """Only the step of VLMEvalKit's form that concerns punctuation, as its yes/no extraction uses it."""
    return _punctuation(text, _LONE_PERIOD)


def _blanks(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str, period: re.Pattern[str]) -> str:
    """Delete each mark that touches a blank somewhere in the text; make the others blanks."""
    found = text
    grouped = _GROUPED.search(text) is not None
    for mark in _PUNCTUATION:
        touches = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if touches or grouped else " ")
    return period.sub("", found, count=_MOST_PERIODS)


def _digits_and_articles(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
