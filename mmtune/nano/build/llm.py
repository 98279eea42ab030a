"""Train the nano language model: a small Llama that reads scenes in words, in vectors and in weights-like additions."""

import argparse
import json
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from mmtune.nano.build.contexts import BatchMaker
from mmtune.nano.build.gate import KINDS, failures, load, measure, table
from mmtune.nano.build.reader import Reader, make_model
from mmtune.nano.build.vocabulary import BOS, EOS, PAD, Words, build_tokenizer

logger = logging.getLogger(__name__)

EASY_ROWS = {"slots": 24, "text": 18, "inline": 6}
FULL_ROWS = {"text": 20, "slots": 10, "grid": 10, "inline": 10, "blind": 2}
DESCRIBED = ("text", "slots", "grid")
DESCRIBE_ROWS, DESCRIBE_WEIGHT = 6, 0.3
JOINED_SHARE = 0.25
INLINE_DEPTHS = 3


@dataclass(frozen=True, slots=True)
class LlmPlan:
    """How long and how hard to train.

    The first ``easy`` steps show things mostly as a few vectors, and at the very start no more than two of them. The
    rate is warmed up, held for ``held`` of the steps and then brought to zero linearly.
    """

    steps: int = 1200
    easy: int = 120
    turns: int = 10
    matrix_rate: float = 8e-3
    other_rate: float = 3e-3
    warmup: int = 30
    held: float = 0.35
    hint_weight: float = 0.5
    seed: int = 0
    hidden: int = 128
    layers: int = 4


class Trainer:
    """One run from fresh weights; logs losses and accuracies as JSON lines."""

    def __init__(self, plan: LlmPlan, words: Words, log: Path) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.log = plan, log
        self.generator = np.random.default_rng(plan.seed)
        self.maker = BatchMaker(words, self.generator)
        self.judge = BatchMaker(words, np.random.default_rng(plan.seed + 1))
        self.model = make_model(len(words.tokenizer), plan.hidden, plan.layers)
        self.reader = Reader(self.model, plan.seed)
        self.optimizers = self._optimizers()
        self.losses: dict[str, list[float]] = defaultdict(list)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices of the layers, AdamW for embeddings, head and norms."""
        matrices = [weight for weight in self.model.model.layers.parameters() if weight.ndim == 2]
        known = {id(weight) for weight in matrices}
        others = [weight for weight in self.model.parameters() if id(weight) not in known]
        others += list(self.reader.hints.parameters())
        muon = torch.optim.Muon(
            matrices, lr=self.plan.matrix_rate, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        adam = torch.optim.AdamW(others, lr=self.plan.other_rate, betas=(0.9, 0.98), weight_decay=0.0)
        for optimizer in (muon, adam):
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]
        return [muon, adam]

    def run(self) -> None:
        """Train to the end of the plan."""
        plan, began = self.plan, time.monotonic()
        self.log.write_text(json.dumps(asdict(plan)) + "\n")
        for step in range(plan.steps):
            self._step(step)
            if step % 50 == 49 or step == plan.steps - 1:
                self._report(step + 1, time.monotonic() - began)

    def _step(self, step: int) -> None:
        plan = self.plan
        past = step / plan.steps
        decay = 1.0 if past < plan.held else max(0.005, (1 - past) / (1 - plan.held))
        self._start(decay * min(1.0, (step + 1) / plan.warmup))
        easy = step < plan.easy
        rows = EASY_ROWS if easy else FULL_ROWS
        for kind, number in rows.items():
            joined = not easy and bool(self.generator.random() < JOINED_SHARE)
            most = 2 if step < plan.warmup else 3
            self._learn(kind, number, plan.turns, most, joined, number / sum(rows.values()), plan.hint_weight)
        if not easy:
            kind = DESCRIBED[step % len(DESCRIBED)]
            self._learn(kind, DESCRIBE_ROWS, 0, 3, False, DESCRIBE_WEIGHT, plan.hint_weight)
        self._finish()

    def _start(self, factor: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.zero_grad()

    def _finish(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()

    def _learn(self, kind: str, rows: int, turns: int, maximum: int, joined: bool, weight: float, hint: float) -> None:
        """Add the gradient of one batch of one kind."""
        batch = self.maker.batch(kind, rows, turns, 1, maximum, joined)
        depth = int(self.generator.integers(INLINE_DEPTHS)) if kind == "inline" else 0
        loss, hint_loss = self.reader.loss(batch, depth)
        ((loss + hint * hint_loss) * weight).backward()
        self.losses[f"{kind} hint"].append(hint_loss.item())
        self.losses[kind if turns else "describe"].append(loss.item())

    def _report(self, step: int, seconds: float) -> None:
        """Write mean losses and the accuracies on fresh scenes of two or three things."""
        right = {kind: self.reader.accuracy(self.judge.batch(kind, 60, 10, 2, 3)) for kind in EASY_ROWS | FULL_ROWS}
        right["describe"] = self.reader.accuracy(self.judge.batch("grid", 60, 0, 2, 3))
        losses = {kind: round(sum(values) / len(values), 4) for kind, values in self.losses.items()}
        self.losses.clear()
        line = {"step": step, "seconds": round(seconds), "loss": losses, "right": right}
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        least = {kind: min(values.values()) for kind, values in right.items()}
        logger.info("step %d, %.0f s, least %s", step, seconds, least)


def save_llm(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write weights in float16, a configuration that loads them as float32, and the tokenizer."""
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False, max_new_tokens=64
    )
    half = {name: weight.detach().half() for name, weight in model.state_dict().items()}
    model.save_pretrained(directory, state_dict=half)
    tokenizer.save_pretrained(directory)
    for name, change in (
        ("config.json", {"dtype": "float32"}),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ):
        path = directory / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change, indent=2) + "\n")
    (directory / "model.safetensors").chmod(0o644)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, save and gate a model: ``python -m mmtune.nano.build llm --output DIR --seed 0``."""
    parser = argparse.ArgumentParser(prog="mmtune.nano.build llm", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=LlmPlan.steps)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    words = Words(build_tokenizer(options.output))
    trainer = Trainer(LlmPlan(steps=options.steps, seed=options.seed), words, options.output / "log_llm.jsonl")
    trainer.run()
    save_llm(trainer.model, words.tokenizer, options.output)
    model, tokenizer = load(options.output)
    figures = measure(model, tokenizer)
    logger.info("%s", table(figures))
    return 1 if failures({kind: figures[kind] for kind in KINDS}) else 0
