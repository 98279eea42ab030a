"""The reading gate: can the frozen nano language model look everything up in scenes it is told about?

Every question is asked about a scene of two or three things. The scene arrives as sentences (``text``), as 36 patch
vectors (``grid``), as a few vectors (``slots``) or added to the words of the question (``inline``). An answer counts
when greedy decoding gives exactly it and then ``</s>``. Nothing here is shared with the trainer's batches.
"""

import argparse
import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mmtune.nano.build.phrases import CONTEXT_FORMS
from mmtune.nano.world.scene import (
    COLUMNS,
    NUMBERS,
    ROWS,
    SHORT_TYPES,
    Question,
    Scene,
    Thing,
    article,
    ask,
    sample_scene,
)

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parents[1] / "assets" / "llm"
KINDS = ("text", "grid", "inline")
DESCRIBED = ("text", "grid", "slots")
"""Where whole descriptions are measured as well; they are reported but not judged."""
FLOOR = 0.95
GRID = 6
INLINE_DEPTHS = 3
"""Inline additions are tried at the input of the first, second and third layer."""


@dataclass(frozen=True)
class Case:
    """A prompt with its answer: ids, what is added to their vectors [length, hidden], and where the answer starts."""

    ids: list[int]
    added: Tensor
    start: int


class Teller:
    """Tells scenes to the model in the gate's kinds."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> None:
        self.tokenizer, self.rng = tokenizer, rng
        self.table = model.get_input_embeddings().weight.detach().float()
        self.spread = float(self.table[3:].std())
        self.noise = torch.Generator().manual_seed(rng.getrandbits(31))

    def case(self, kind: str, scene: Scene, question: Question) -> Case:
        """Put a scene, a question and its answer into one sequence."""
        if kind == "text":
            context = " ".join(self.sentence(thing) for thing in self.rng.sample(scene.things, len(scene.things)))
            return self._case([self._ids(f"USER: {context}\n")], question, {})
        if kind == "inline":
            return self._case([self._ids("USER: \n")], question, self._inline(scene))
        vectors = self._grid(scene) if kind == "grid" else self._slots(scene)
        return self._case([self._ids("USER: "), vectors, self._ids("\n")], question, {})

    def sentence(self, thing: Thing) -> str:
        """Put a thing into one of the forms of the text contexts."""
        (form,) = self.rng.choice(CONTEXT_FORMS)
        word = article(thing.color if "{article} {color}" in form else thing.size)
        text = form.format(
            article=word, size=thing.size, color=thing.color, shape=thing.shape,
            row=ROWS[thing.row], column=COLUMNS[thing.column],
        )  # fmt: skip
        return text[0].upper() + text[1:] if self.rng.random() < 0.5 and form[0] != "{" else text

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _case(self, parts: list[list[int] | Tensor], question: Question, inline: dict[str, Tensor]) -> Case:
        """Join head, context and question; the unknown token's vector is taken away where a context vector stands."""
        ids, rows = [self.tokenizer.bos_token_id], [torch.zeros_like(self.table[0])]
        for part in parts:
            if isinstance(part, Tensor):
                ids += [0] * len(part)
                rows += list(part - self.table[0])
            else:
                ids += part
                rows += [torch.zeros_like(self.table[0])] * len(part)
        asked = self._ids(f"{question.text} ASSISTANT:")
        for token in asked:
            word = self.tokenizer.decode([token]).strip().lower()
            rows.append(inline.get(word, torch.zeros_like(self.table[0])))
        start = len(ids) + len(asked)
        answer = [*self._ids(f" {question.answer}"), self.tokenizer.eos_token_id]
        rows += [torch.zeros_like(self.table[0])] * len(answer)
        return Case(ids + asked + answer, torch.stack(rows), start)

    def _vector(self, words: Sequence[str], strength: float) -> Tensor:
        """Sum of word vectors, times a strength, plus noise."""
        ids = [self._ids(" " + word)[0] for word in words]
        noise = torch.randn(self.table.shape[1], generator=self.noise)
        return self.table[ids].sum(0) * strength + noise * self.spread * 0.2

    def _thing(self, thing: Thing, strength: float, without: str = "") -> Tensor:
        words = (thing.color, thing.shape, thing.size, ROWS[thing.row], COLUMNS[thing.column])
        return self._vector([word for word in words if word != without], strength)

    def _grid(self, scene: Scene) -> Tensor:
        strength = self.rng.uniform(0.5, 1.0)
        vectors = torch.stack([self._vector((), strength) for _ in range(GRID * GRID)])
        for thing in scene.things:
            for patch in range(4):
                place = (thing.row * 2 + patch // 2) * GRID + thing.column * 2 + patch % 2
                vectors[place] = self._thing(thing, strength)
        return vectors

    def _slots(self, scene: Scene) -> Tensor:
        strength = self.rng.uniform(0.5, 1.0)
        vectors = [self._thing(thing, strength) for thing in scene.things]
        vectors += [self._vector((), strength) for _ in range(self.rng.randint(0, 4))]
        return torch.stack(self.rng.sample(vectors, len(vectors)))

    def _inline(self, scene: Scene) -> dict[str, Tensor]:
        strength = self.rng.uniform(0.5, 1.0)
        added = {}
        for thing in scene.things:
            for key in (thing.color, thing.shape):
                added[key] = self._thing(thing, strength, without=key)
        for word in ("many", "count"):
            added[word] = self._vector([NUMBERS[len(scene.things)]], strength)
        return added


def exact(model: PreTrainedModel, cases: Sequence[Case], depth: int = 0) -> list[bool]:
    """Whether greedy decoding gives each answer: the arg-max is right at each of its places, ``</s>`` included."""
    length = max(len(case.ids) for case in cases)
    ids = torch.zeros(len(cases), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    added = torch.zeros(*ids.shape, cases[0].added.shape[1])
    for row, case in enumerate(cases):
        ids[row, : len(case.ids)] = torch.tensor(case.ids)
        mask[row, : len(case.ids)] = 1
        added[row, : len(case.ids)] = case.added
    embeds = model.get_input_embeddings()(ids)
    added = added.to(embeds.dtype)
    handle = None
    if depth:

        def add(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + added

        handle = model.get_submodule(f"model.layers.{depth - 1}").register_forward_hook(add)
    else:
        embeds = embeds + added
    with torch.inference_mode():
        best = model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits.argmax(-1)
    if handle is not None:
        handle.remove()
    return [
        best[row, case.start - 1 : len(case.ids) - 1].tolist() == case.ids[case.start :]
        for row, case in enumerate(cases)
    ]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: int = 200,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    types: Sequence[str] = SHORT_TYPES,
) -> dict[str, dict[str, float]]:
    """Exact match of each type for each kind of context."""
    rng = random.Random(seed)
    teller = Teller(model, tokenizer, rng)
    figures: dict[str, dict[str, float]] = {}
    for kind in kinds:
        figures[kind] = {}
        for type in types:
            right: list[bool] = []
            for index, size in enumerate(_chunks(questions, 50)):
                scenes = [sample_scene(rng, 2, 3) for _ in range(size)]
                cases = [teller.case(kind, scene, ask(scene, rng, type)) for scene in scenes]
                right += exact(model, cases, index % INLINE_DEPTHS if kind == "inline" else 0)
            figures[kind][type] = sum(right) / len(right)
    return figures


def _chunks(total: int, size: int) -> Iterator[int]:
    for begin in range(0, total, size):
        yield min(size, total - begin)


def failures(figures: dict[str, dict[str, float]], floor: float = FLOOR) -> list[str]:
    """Name what is below the floor."""
    return [
        f"{kind}/{type} {value:.3f}"
        for kind, values in figures.items()
        for type, value in values.items()
        if value < floor
    ]


def table(figures: dict[str, dict[str, float]]) -> str:
    """Render the figures as a Markdown table."""
    lines = ["| type | " + " | ".join(figures) + " |", "|---|" + "---|" * len(figures)]
    for type in next(iter(figures.values())):
        cells = [f"{values[type]:.3f}" if type in values else "-" for values in figures.values()]
        lines.append(f"| {type} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def load(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a folder of the nano language model in float32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(directory, local_files_only=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Judge a model: ``python -m mmtune.nano.build gate --model DIR``; exit status 1 below the floor."""
    parser = argparse.ArgumentParser(prog="mmtune.nano.build gate", description=main.__doc__)
    parser.add_argument("--model", type=Path, default=ASSETS, help="folder of the language model")
    parser.add_argument("--questions", type=int, default=200, help="questions for each type and kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model, tokenizer = load(options.model)
    figures = measure(model, tokenizer, options.questions, options.seed, (*KINDS, "slots"))
    missed = failures({kind: figures[kind] for kind in KINDS})
    described = measure(model, tokenizer, options.questions, options.seed, DESCRIBED, ("describe",))
    for kind, values in described.items():
        figures[kind] |= values
    logger.info("%s", table(figures))
    logger.info("%s", f"below {FLOOR}: {', '.join(missed)}" if missed else f"passed: all at {FLOOR} or above")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if missed else 0
