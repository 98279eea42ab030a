"""Speed of answering, against the bare language model on the same base:

    python benchmarks/generation.py [--base nano] [--base 100m] [--output benchmarks/results]

Every method answers one picture question with so many new tokens. The bare model continues embeddings of the same
length without hooks. Contestants take turns within one process, so that they meet the same load; of several rounds the
fastest counts, in processor seconds.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from case import build, make_batch
from methods import METHODS, describe
from tables import BASES, NAMES, table

NEW = 64
TEXT = 64
ROUNDS = {"nano": 9, "100m": 2}
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure decoding speed and time to first token.")
    parser.add_argument("--base", choices=sorted(ROUNDS), action="append", help="only this base")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="folder for generation.md and generation.json [default: none]")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = psutil.getloadavg()[0]
    cases = [measure(base, method) for base in arguments.base or ROUNDS for method in METHODS]
    environment = {**describe(), "threads": arguments.threads, "load": [load, psutil.getloadavg()[0]]}
    text = render(environment, cases)
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        kept = {"environment": environment, "cases": cases}
        (arguments.output / "generation.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        (arguments.output / "generation.md").write_text(text, encoding="utf-8")
    print(text)


def measure(base: str, method: str) -> dict[str, Any]:
    """Processor seconds of one answer, of its first token, of eight answers, and the same of the bare model."""
    with tempfile.TemporaryDirectory() as scratch:
        model = build(base, method, Path(scratch)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.method.parameters():  # a fresh method may be neutral and is then cheaper than it will be
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    bare = copy.deepcopy(model.language_model)
    for module in bare.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    contestants: dict[str, Callable[[], Any]] = {}
    for size in (1, BATCH):
        batch = {key: value for key, value in make_batch(model, size, TEXT).items() if key != "labels"}
        ids = batch["input_ids"].clamp(max=model.host.vocab_size - 1)
        embedded = {"inputs_embeds": model.host.input_embeddings(ids), "attention_mask": batch["attention_mask"]}
        for tokens in (1, NEW):
            options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
            name = f"{size} x {tokens}"
            contestants[name] = lambda given=batch, options=options: model.generate(**given, **options)
            if size == 1:
                contestants[f"bare {name}"] = lambda given=embedded, options=options: bare.generate(**given, **options)
    seconds = take_turns(contestants, ROUNDS[base])
    decoding = seconds[f"1 x {NEW}"] - seconds["1 x 1"]
    bare_decoding = seconds[f"bare 1 x {NEW}"] - seconds["bare 1 x 1"]
    return {
        "base": base,
        "method": method,
        "positions": model.method.placeholders("image", model.modalities["image"].num_positions) + TEXT,
        "seconds": seconds,
        "tokens_per_second": (NEW - 1) / decoding,
        "bare_tokens_per_second": (NEW - 1) / bare_decoding,
        "of_bare": bare_decoding / decoding,
        "first_token_s": seconds["1 x 1"],
        "batch_of_eight": seconds[f"{BATCH} x {NEW}"] / (BATCH * seconds[f"1 x {NEW}"]),
    }


def take_turns(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least processor seconds of each, after a round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, work in contestants.items():
            began = time.process_time()
            work()
            if turn:
                found[name].append(time.process_time() - began)
    return {name: min(values) for name, values in found.items()}


def render(environment: Mapping[str, Any], cases: list[dict[str, Any]]) -> str:
    """The table and what it was measured on."""
    rows = [
        {
            "base": BASES[case["base"]],
            "method": NAMES[case["method"]],
            "prompt positions": str(case["positions"]),
            "first token": f"{1000 * case['first_token_s']:.0f} ms",
            "tokens/s": f"{case['tokens_per_second']:.0f}",
            "bare model, tokens/s": f"{case['bare_tokens_per_second']:.0f}",
            "share of bare": f"{case['of_bare']:.2f}",
            "8 at once, of 8 single": f"{case['batch_of_eight']:.2f}",
        }
        for case in cases
    ]
    machine = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "load")
    first, last = environment["load"]
    return "\n".join(
        [
            "# Answering measured",
            "",
            f"{machine}; load average {first:.1f} to {last:.1f}.",
            "",
            f"float32, greedy, {TEXT} text tokens and one picture, {NEW} new tokens, processor seconds, the fastest of",
            "several rounds. The first token includes the encoder; the bare model continues a prompt as long.",
            "",
            *table(rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
