"""Speed of answering, against the bare language model on the same base:

    python benchmarks/generation.py [--base nano] [--base 100m] [--output benchmarks/results]

Every method answers one picture question with so many new tokens. The bare model continues embeddings of the same
length without anything put into it. Contestants take turns within one process, so that they meet the same load; of
several rounds the fastest counts, token by token, in processor seconds.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from case import build, make_batch
from methods import METHODS, describe
from tables import BASES, NAMES, table
from transformers.generation.streamers import BaseStreamer

NEW = 64
TEXT = 64
ROUNDS = {"nano": 16, "100m": 3}
BATCH = 8
FILE = "generation.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure decoding speed and time to first token.")
    parser.add_argument("--base", choices=sorted(ROUNDS), action="append", help="only this base")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="folder for generation.md and generation.json [default: none]")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bases = arguments.base or list(ROUNDS)
    cases = kept_cases(arguments.output, bases)
    for base in bases:
        load = psutil.getloadavg()[0]
        found = [measure(base, method) for method in METHODS]
        environment = {**describe(), "threads": arguments.threads, "load": [load, psutil.getloadavg()[0]]}
        cases += [{**case, "environment": environment} for case in found]
    cases.sort(key=lambda case: list(ROUNDS).index(case["base"]))
    text = render(cases)
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / FILE).write_text(json.dumps({"cases": cases}, indent=1) + "\n", encoding="utf-8")
        (arguments.output / "generation.md").write_text(text, encoding="utf-8")
    print(text)


def kept_cases(folder: Path | None, bases: Sequence[str]) -> list[dict[str, Any]]:
    """What an earlier run has left of the bases that are not measured now."""
    if folder is None or not (folder / FILE).exists():
        return []
    cases: list[dict[str, Any]] = json.loads((folder / FILE).read_text(encoding="utf-8"))["cases"]
    return [case for case in cases if case["base"] not in bases]


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
        vars(module).pop("forward", None)  # as its class has it, without what the method put around it
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    contestants: dict[str, Callable[[Clock], Any]] = {}
    for size in (1, BATCH):
        batch = {key: value for key, value in make_batch(model, size, TEXT).items() if key != "labels"}
        contestants[str(size)] = lambda clock, given=batch: model.generate(**given, **options, streamer=clock)
        if size == 1:
            ids = batch["input_ids"].clamp(max=model.host.vocab_size - 1)
            embeddings = model.host.input_embeddings(ids).detach()
            given = {"inputs_embeds": embeddings, "attention_mask": batch["attention_mask"]}
            contestants["bare"] = lambda clock, given=given: bare.generate(**given, **options, streamer=clock)
            contestants["inference"] = torch.inference_mode()(contestants["bare"])
    alone = {name: contestants.pop(name) for name in [str(BATCH)]}  # a batch would wash the others out of the cache
    seconds = {**take_turns(contestants, ROUNDS[base]), **take_turns(alone, 2)}  # of each token
    decoding, bare_decoding, in_inference = (sum(seconds[name][1:]) for name in ("1", "bare", "inference"))
    return {
        "base": base,
        "method": method,
        "positions": model.method.placeholders("image", model.modalities["image"].num_positions) + TEXT,
        "seconds": {name: sum(values) for name, values in seconds.items()},
        "tokens_per_second": (NEW - 1) / decoding,
        "bare_tokens_per_second": (NEW - 1) / bare_decoding,
        "of_bare": bare_decoding / decoding,
        "of_bare_in_inference_mode": in_inference / decoding,
        "first_token_s": seconds["1"][0],
        "batch_of_eight": sum(seconds[str(BATCH)]) / (BATCH * sum(seconds["1"])),
    }


class Clock(BaseStreamer):
    """Notes when each token is there, in processor seconds."""

    def __init__(self) -> None:
        self.times = [time.process_time()]

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.process_time())

    def end(self) -> None:
        del self.times[1]  # generate hands over the prompt first

    def seconds(self) -> list[float]:
        """What each token took; the first includes reading the prompt."""
        return [after - before for before, after in pairwise(self.times)]


def take_turns(contestants: Mapping[str, Callable[[Clock], Any]], rounds: int) -> dict[str, list[float]]:
    """The least processor seconds of each token of each contestant, after a round that does not count."""
    found: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, work in contestants.items():
            clock = Clock()
            work(clock)
            found[name].append(clock.seconds())
    return {name: [min(times) for times in zip(*turns[1:], strict=True)] for name, turns in found.items()}


def render(cases: list[dict[str, Any]]) -> str:
    """The table and what it was measured on."""
    environments = {BASES[case["base"]]: case["environment"] for case in cases}
    rows = [
        {
            "base": BASES[case["base"]],
            "method": NAMES[case["method"]],
            "prompt positions": str(case["positions"]),
            "first token": f"{1000 * case['first_token_s']:.0f} ms",
            "tokens/s": f"{case['tokens_per_second']:.0f}",
            "bare model, tokens/s": f"{case['bare_tokens_per_second']:.0f}",
            "share of bare": f"{case['of_bare']:.2f}",
            "of bare in inference mode": f"{case['of_bare_in_inference_mode']:.2f}",
            "8 at once, of 8 single": f"{case['batch_of_eight']:.2f}",
        }
        for case in cases
    ]
    return "\n".join(
        [
            "# Answering measured",
            "",
            *(f"{base}: {_machine(environment)}\n" for base, environment in environments.items()),
            f"float32, greedy, {TEXT} text tokens and one picture, {NEW} new tokens, processor seconds,",
            "each token the fastest of several rounds. The first token includes the encoder; the bare model continues",
            "a prompt as long, by its own generate, and once more within torch.inference_mode, where ours decodes.",
            "",
            *table(rows),
            "",
        ]
    )


def _machine(environment: Mapping[str, Any]) -> str:
    first, last = environment["load"]
    known = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "load")
    return f"{known}; load average {first:.1f} to {last:.1f}."


if __name__ == "__main__":
    main()
