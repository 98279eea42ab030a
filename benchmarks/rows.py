"""A training step of each method against the number of rows, each case in a process of its own:

    python benchmarks/rows.py [--threads N] [--output benchmarks/results]

prints the table and writes it to ``rows.md``, with every figure in ``rows.json``. What loops over rows has more tensor
operations for more rows and as much time for each of them; what does not has the same number, and rows that share them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from methods import describe, run
from tables import NAMES, machine, table

METHODS = ("llava", "vlora", "lavin", "multi_token")
ROWS = (1, 2, 4, 8, 16)
TEXT = 64  # tokens of a row, beside its picture
STEPS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a training step of each method on nano, row by row.")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of each case")
    parser.add_argument("--output", type=Path, help="folder for rows.md and rows.json [default: none]")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"environment": {**describe(), "threads": arguments.threads}, "cases": []}
    for rows in ROWS:  # the methods of one size follow each other, so that they meet the same load
        for method in METHODS:
            print(f"{method}, {rows} rows", file=sys.stderr, flush=True)
            case = {"base": "nano", "method": method, "text": TEXT, "batch_size": rows, "steps": STEPS}
            results["cases"].append(run({**case, "threads": arguments.threads}))
    if arguments.output is not None:
        (arguments.output / "rows.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (arguments.output / "rows.md").write_text(render(results), encoding="utf-8")
    print(render(results))


def render(results: Mapping[str, Any]) -> str:
    """The table, with what it was measured on and how to read it."""
    return "\n".join(
        [
            "# A training step against the number of rows",
            "",
            machine(results),
            "",
            f"nano, float32, only the method trained; a row is one random picture and {TEXT} random tokens. Operations",
            "are the tensor operations of forward and backward: their number depends on no load, and a loop over rows",
            "would show in it; from two rows on it is constant, one row needs a few less. Of several steps the fastest",
            "counts, but wall clock tells of all programs that share the cores; processor time hardly does. Memory is",
            "the growth of the process to its peak; the last column is that above the peak of one row, shared among",
            "the further rows.",
            "",
            *table(_lines(results["cases"])),
            "",
        ]
    )


def _lines(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    single = {case["method"]: case["peak_memory_bytes"] for case in cases if case["batch_size"] == 1}
    lines = []
    for case in sorted(cases, key=lambda case: METHODS.index(case["method"])):
        rows, step = case["batch_size"], case["train_step"]
        grown = (case["peak_memory_bytes"] - single[case["method"]]) / max(1, rows - 1) / 2**20
        lines.append(
            {
                "method": NAMES[case["method"]],
                "rows": str(rows),
                "operations": f"{case['operations']:,}",
                "ms/step": f"{1000 * step['least_s']:.0f}",
                "ms/row": f"{1000 * step['least_s'] / rows:.1f}",
                "processor ms/row": f"{1000 * step['processor_s'] / rows:.1f}",
                "peak memory": f"{case['peak_memory_bytes'] / 2**20:,.0f} MiB",
                "MiB for each further row": f"{grown:.1f}" if rows > 1 else "",
            }
        )
    return lines


if __name__ == "__main__":
    main()
