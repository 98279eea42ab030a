"""A training step of LLaVA here, in the Trainer of transformers and in TRL's SFTTrainer, side by side:

    pip install --no-deps trl
    python benchmarks/training.py [--threads N] [--rounds N] [--output benchmarks/results]

The same weights, rows and optimizer; each in a process of its own, which takes its steps in turn with the others, so
that all of them meet the same load. Prints a table; with --output it goes into ``training.md`` and ``training.json``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import contestants
from methods import describe

NAMES = {"mmtune": "mmtune", "all_logits": "mmtune, all logits", "trainer": "HF Trainer", "trl": "TRL SFTTrainer"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure LLaVA's training step against its peers.")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of each contestant")
    parser.add_argument("--workload", choices=list(contestants.WORKLOADS), action="append", help="only this one")
    parser.add_argument("--rounds", type=int, default=2, help="how often every batch is trained on and measured")
    parser.add_argument("--output", type=Path, help="folder for training.md and training.json [default: none]")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    kept = arguments.output / "training.json" if arguments.output is not None else None
    results: dict[str, Any] = json.loads(kept.read_text("utf-8")) if kept is not None and kept.exists() else {}
    for workload in arguments.workload or contestants.WORKLOADS:
        environment = {**describe(), "threads": arguments.threads}
        results[workload] = {"environment": environment, "contestants": race(workload, arguments.rounds)}
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            (arguments.output / "training.md").write_text(render(results), encoding="utf-8")
    print(render(results))


def race(workload: str, rounds: int) -> dict[str, Any]:
    """All contestants on one workload, a batch at a time in turn; the first batch of all is not counted."""
    context = multiprocessing.get_context("spawn")
    ends, processes = {}, []
    for name in NAMES:
        if name == "all_logits" and workload != "equal":
            continue
        ours, theirs = context.Pipe()
        process = context.Process(target=contestants.run, args=(name, workload, rounds, theirs), daemon=True)
        process.start()
        processes.append(process)
        ends[name] = ours
        theirs.close()
        ends[name].recv()  # built: one after another, so that none is built while another is measured
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in ends}
    for number in range(1 + rounds * contestants.NUM_BATCHES[workload]):
        for name, end in ends.items():
            end.send("go")
            found = end.recv()
            print(f"{workload} {name} step {number}: {found}", file=sys.stderr, flush=True)
            if number:
                steps[name].append(found)
    finals = {name: end.recv() for name, end in ends.items()}
    for process in processes:
        process.join()
    count = contestants.NUM_BATCHES[workload]
    return {name: summary(steps[name], finals[name], count) for name in ends}


def summary(steps: list[dict[str, float]], final: dict[str, float], count: int) -> dict[str, Any]:
    """Samples a second over all ``count`` batches, of the fastest time that each batch had."""
    rows = sum(step["rows"] for step in steps[:count])
    found = {
        kind: rows / sum(min(step[kind] for step in steps[place::count]) for place in range(count))
        for kind in ("wall_s", "processor_s")
    }
    padding = 1.0 - sum(step["tokens"] for step in steps[:count]) / sum(step["positions"] for step in steps[:count])
    return {
        "samples_per_second": found["wall_s"],
        "samples_per_processor_second": found["processor_s"],
        "padding": padding,
        "first_loss": steps[0]["loss"],
        "median_step_s": statistics.median(step["wall_s"] for step in steps),
        **final,
        "steps": steps,
    }


def render(results: dict[str, Any]) -> str:
    """The table of every workload."""
    lines = [
        "# A training step of LLaVA beside its peers",
        "",
        contestants.DESCRIPTION,
        "",
        "Contestants take their steps in turn in one run. Of the rounds, each batch's fastest time counts. Other",
        "programs share the cores: wall clock tells of them too, processor seconds hardly do; the ratios are of these.",
        "Memory is the growth of the process from before the model is built to its peak.",
        "",
    ]
    for workload in (name for name in contestants.WORKLOADS if name in results):
        env, found = results[workload]["environment"], results[workload]["contestants"]
        loads = [step["load"] for case in found.values() for step in case["steps"]]
        lines += [
            f"## {workload} ({contestants.WORKLOADS[workload]}; load average {min(loads):.1f} to {max(loads):.1f})",
            "",
            f"{env['processor']}, {env['cores']} cores ({env['threads']} thread{'s' * (env['threads'] != 1)} each), "
            f"{env['system']}; Python {env['python']}, torch {env['torch']}, transformers {env['transformers']}; "
            f"commit {env['commit']}; {env['date']}.",
            "",
            "| | samples/s | samples per processor s | mmtune is faster | padding | peak memory |",
            "|---|---|---|---|---|---|",
        ]
        ours = found["mmtune"]["samples_per_processor_second"]
        lines += [
            f"| {NAMES[name]} | {case['samples_per_second']:.2f} | {case['samples_per_processor_second']:.2f} "
            f"| {ours / case['samples_per_processor_second']:.2f} x | {case['padding']:.0%} "
            f"| {case['peak_bytes'] / 2**20:,.0f} MiB |"
            for name, case in found.items()
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
