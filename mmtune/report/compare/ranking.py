"""Scores side by side: ranked where all were made under the same conditions, shown without ranks where not."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmtune.data.sample import Sample
from mmtune.evaluation.contract import asking, breaches, making
from mmtune.evaluation.statistics import holm, mcnemar, paired_bootstrap
from mmtune.report.compare.evaluations import Evaluation, Key, clusters

Found = Mapping[str, Sequence[Evaluation]]


@dataclass(frozen=True)
class Table:
    """Evaluations of one benchmark under one set of conditions, or under several, and then not ranked.

    Attributes:
        entries: Name of the run and its evaluation.
        reasons: Why there are no ranks.
    """

    title: str
    entries: tuple[tuple[str, Evaluation], ...]
    reasons: tuple[str, ...] = ()

    @property
    def ranked(self) -> bool:
        """Whether its scores may be put in order."""
        return not self.reasons

    @property
    def samples(self) -> Mapping[Key, Sample]:
        """The rows of a ranked table, which are the same for all; empty when no data can be read again."""
        return next((one.samples for _, one in self.entries if one.samples), {})

    @property
    def given(self) -> list[str]:
        """Those whose answers were given: under which prompts, decoding and dtype they came about is unknown."""
        return [name for name, one in self.entries if one.contract and making(one.contract) is None]


def tables(found: Found) -> list[Table]:
    """A table for each set of conditions that all runs with this benchmark share, and one for what is left over.

    Args:
        found: Evaluations by the name of the run.
    """
    made = []
    benchmarks = dict.fromkeys(one.result["benchmark"] for given in found.values() for one in given)
    for benchmark in benchmarks:
        of = {name: [one for one in given if one.result["benchmark"] == benchmark] for name, given in found.items()}
        made += _of_benchmark({name: given for name, given in of.items() if given})
    return made


def _of_benchmark(found: Found) -> list[Table]:
    alike = _alike([(name, one) for name, given in found.items() for one in given])
    shared = [entries for entries in alike if len(entries) == len(found)]
    rest = [entry for entries in alike if len(entries) < len(found) for entry in entries]
    made = [Table(entries[0][1].title, tuple(entries), _obstacles(entries)) for entries in shared]
    if rest:
        rest.sort(key=lambda entry: list(found).index(entry[0]))
        made.append(Table(str(rest[0][1].result["benchmark"]), tuple(rest), _reasons(rest)))
    return made


def _alike(entries: Sequence[tuple[str, Evaluation]]) -> list[list[tuple[str, Evaluation]]]:
    """Evaluations of equal conditions together; given answers go with those that were asked the same rows, if any."""
    by_rows: dict[str, list[tuple[str, Evaluation]]] = {}
    for name, one in entries:
        key = json.dumps(asking(one.contract), sort_keys=True) if one.contract else f"{name} {one.folder}"
        by_rows.setdefault(key, []).append((name, one))
    found = []
    for group in by_rows.values():
        by_making: dict[str, list[tuple[str, Evaluation]]] = {}
        for name, one in group:
            by_making.setdefault(json.dumps(making(one.contract or {}), sort_keys=True), []).append((name, one))
        once = len({name for name, _ in group}) == len(group)
        known = by_making.keys() - {"null"}
        found += [group] if once and len(known) <= 1 else list(by_making.values())
    return found


def _obstacles(entries: Sequence[tuple[str, Evaluation]]) -> tuple[str, ...]:
    """Why evaluations of equal conditions cannot be ranked all the same."""
    if len(entries) < 2:
        return (f"only {entries[0][0]} was evaluated on it",)
    if any(one.result.get("main_score") is None for _, one in entries):
        return ("this benchmark has no score to rank by",)
    return ()


def _reasons(entries: Sequence[tuple[str, Evaluation]]) -> tuple[str, ...]:
    """Every condition in which evaluations differ, in words."""
    old = [f"{one.folder} does not record its conditions: evaluate again" for _, one in entries if not one.contract]
    names = {name: [one for other, one in entries if other == name] for name, _ in entries}
    unique = {
        name if len(given) == 1 else f"{name} ({one.folder.name})": dict(one.contract or {})
        for name, given in names.items()
        for one in given
        if one.contract
    }
    told = [
        f"{entry['what']} differs: " + ", ".join(f"{name} {_short(value)}" for name, value in entry["values"].items())
        for entry in breaches(unique)
    ]
    told = old + told
    return tuple(told) or ("not all runs were evaluated on it",)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def table_json(table: Table) -> dict[str, Any]:
    """A table as the JSON of the verb has it: rows in order of rank, or of the runs where there are no ranks."""
    rows = [_row(name, one) for name, one in table.entries]
    if table.ranked:
        better = table.entries[0][1].result["main_score"]["higher_is_better"]
        rows.sort(key=lambda row: -row["value"] if better else row["value"])
        for row in rows:
            row["rank"] = 1 + sum((o["value"] > row["value"]) == better and o["value"] != row["value"] for o in rows)
    first = table.entries[0][1].result
    main = first.get("main_score") or {}
    return {
        "title": table.title,
        "benchmark": first["benchmark"],
        "scorer": first.get("scorer"),
        "rule": first.get("rule"),
        "score": main.get("name"),
        "higher_is_better": main.get("higher_is_better"),
        "ranked": table.ranked,
        "reasons": list(table.reasons),
        "given": table.given,
        "data_read": bool(table.samples) if table.ranked else None,
        "contract": dict(table.entries[0][1].contract or {}) if table.ranked else None,
        "rows": rows,
        "tests": paired_tests(table) if table.ranked else [],
    }


def _row(name: str, one: Evaluation) -> dict[str, Any]:
    main = one.result.get("main_score") or {}
    interval = (one.result.get("confidence") or {}).get(str(main.get("name"))) or {}
    return {
        "run": name,
        "rank": None,
        "model": one.result.get("model"),
        "value": main.get("value"),
        "score": main.get("name"),
        "low": interval.get("low"),
        "high": interval.get("high"),
        "interval": interval.get("method"),
        **{key: one.result.get(key) for key in ("n", "missing", "failed", "uninferred")},
        "output": str(one.folder),
    }


def paired_tests(table: Table) -> list[dict[str, Any]]:
    """Every pair of runs on the rows that both answered: McNemar's test of verdicts, a bootstrap of the difference.

    ``p`` is McNemar's where rows are right or wrong and each stands for itself, else that of the bootstrap over what
    was drawn together; ``p_holm`` is corrected for the number of pairs.
    """
    found = []
    for (first, one), (second, other) in itertools.combinations(table.entries, 2):
        before, after = one.scores(), other.scores()
        keys = [key for key in before if key in after]
        if not keys:
            continue
        left, right = [before[key] for key in keys], [after[key] for key in keys]
        plain = all(value in (0.0, 1.0) for value in (*left, *right))
        together = clusters(table.samples, keys)
        drawn, exact = paired_bootstrap(left, right, together), mcnemar(left, right) if plain else None
        alone = len(set(together)) == len(keys)
        test = {
            "first": first,
            "second": second,
            "n": len(keys),
            "clusters": len(set(together)),
            "bootstrap": drawn,
            "mcnemar": exact,
            "p": exact["p"] if exact and alone else drawn["p"],
        }
        found.append(test)
    for test, p in zip(found, holm([test["p"] for test in found]), strict=True):
        test["p_holm"] = p
    return found
