"""What two evaluations must share for their scores to be ranked: the same questions, put and scored the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mmtune.data.sample import Sample
from mmtune.evaluation.benchmarks.base import Benchmark, Scores
from mmtune.evaluation.predictions import prompt_hash

if TYPE_CHECKING:
    from mmtune.model.decoding import Decoding


def contract(
    task: Benchmark,
    scored: Scores,
    samples: Sequence[Sample],
    data_sha256: str,
    decoding: Decoding | None,
    dtype: str | None,
) -> dict[str, Any]:
    """The conditions of an evaluation, flat, so that two of them can be held against each other key by key.

    Args:
        samples: The rows that were scored.
        decoding: None for given answers, as is ``dtype``: nobody knows how they came about.
    """
    settings = (
        {} if decoding is None else {f"decoding.{name}": _plain(value) for name, value in asdict(decoding).items()}
    )
    return {
        "benchmark": task.name,
        "scorer": scored.scorer or task.scorer,
        "rule": task.options.rule,
        "pandas_na": task.options.pandas_na,
        "prompt_style": task.options.prompt,
        "data_sha256": data_sha256,
        "rows": len(samples),
        "prompt_sha256": _prompts_sha256(samples),
        **settings,
        "dtype": dtype,
    }


def making(terms: Mapping[str, Any]) -> dict[str, Any] | None:
    """The part of a contract that says how answers came about; None for given answers, of which nobody knows it."""
    return {key: terms[key] for key in terms if _is_of_making(key)} if terms.get("dtype") is not None else None


def asking(terms: Mapping[str, Any]) -> dict[str, Any]:
    """The other part: what was asked, and how answers were scored."""
    return {key: terms[key] for key in terms if not _is_of_making(key)}


def _is_of_making(key: str) -> bool:
    return key == "dtype" or key.startswith("decoding.")


def breaches(contracts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The keys in which contracts differ, each with its value by the name of who has it; empty when all are equal.

    What is unknown is no difference: how given answers came about is not held against that of others.
    """
    known = {name: asking(terms) | (making(terms) or {}) for name, terms in contracts.items()}
    keys = dict.fromkeys(key for found in known.values() for key in found)
    told = []
    for key in keys:
        having = {name: found for name, found in known.items() if not _is_of_making(key) or making(found) is not None}
        told.append((key, {name: found.get(key) for name, found in having.items()}))
    return [{"what": key, "values": values} for key, values in told if len({repr(v) for v in values.values()}) > 1]


def main_score(task: Benchmark, scored: Scores) -> dict[str, Any] | None:
    """The score that models are ranked by: ``name``, ``value`` and whether more is better; None where there is none."""
    if task.primary is not None:
        if not scored.scores:
            return None
        name, value = task.main_score(scored.scores)
        return {"name": name, "value": value, "higher_is_better": True}
    if "nll" in scored.top_level:
        return {"name": "nll", "value": scored.top_level["nll"], "higher_is_better": False}
    return None


def _prompts_sha256(samples: Sequence[Sample]) -> str:
    text = "\n".join(f"{sample.id}\0{prompt_hash(sample)}" for sample in samples)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
