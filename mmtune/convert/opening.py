"""Opens a written folder again, in a process that knows nothing of how it was written, and answers cases with it.

Run as ``python -m mmtune.convert.opening QUESTIONS ANSWERS``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.convert.cases import NEW_TOKENS, Case, Evaluation, answer, load_cases
from mmtune.convert.formats import READERS
from mmtune.convert.plan import Reference, Request
from mmtune.core.errors import MMTuneError, VerificationError
from mmtune.model.build import load

Opener = Callable[[Path, Mapping[str, Any]], Evaluation]


class OwnModel:
    """A folder that ``mmtune.load`` reads."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.model, _ = load(folder, device="cpu", dtype="float32")

    @torch.no_grad()
    def logits(self, case: Case) -> Tensor:
        """See :class:`Evaluation`."""
        found: Tensor = self.model(**case.inputs).logits[0].float()
        return found

    def greedy(self, case: Case) -> list[int] | None:
        """See :class:`Evaluation`."""
        made = self.model.generate(**case.inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        return [int(token) for token in made[0]]


class OriginalCheckpoint:
    """A folder in another system's format, read as any other of its kind and evaluated from its tensors alone."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        request = Request(
            llm=options.get("llm"),
            vision=options.get("vision"),
            settings=options.get("settings", {}),
            encoders=options.get("encoders", {}),
        )
        reader = import_module(READERS[options["format"]])
        source = folder / options["file"] if options.get("file") else folder
        plan = reader.read(source, options["form"], request, merge=False, dtype=None)
        self.reference: Reference = plan.reference
        self.reference.load()

    def logits(self, case: Case) -> Tensor:
        """See :class:`Evaluation`."""
        return self.reference.logits(case.ids, case.picture)[0]

    def greedy(self, case: Case) -> list[int] | None:
        """See :class:`Evaluation`."""
        return [token for token, _ in answer(self.reference, case)]


# How a folder is opened -> the class that does it, "module:name".
OPENERS: Mapping[str, str] = {
    "mmtune": "mmtune.convert.opening:OwnModel",
    "original": "mmtune.convert.opening:OriginalCheckpoint",
    "causal-lm": "mmtune.convert.opening_hf:CausalLanguageModel",
    "tower": "mmtune.convert.opening_hf:VisionTower",
    "hf-llava": "mmtune.convert.opening_hf:NativeLlava",
    "adapter": "mmtune.convert.opening_hf:AdaptedLanguageModel",
}


def evaluate(
    folder: Path, opened_as: str, options: Mapping[str, Any], cases: list[Case]
) -> list[tuple[Tensor, list[int] | None]]:
    """Open a folder and give logits and greedy answers of each case."""
    module, _, name = OPENERS[opened_as].partition(":")
    opener: Opener = getattr(import_module(module), name)
    opened = opener(folder, options)
    return [(opened.logits(case), opened.greedy(case)) for case in cases]


def main(arguments: list[str]) -> None:
    """Answer the cases of a questions folder into a file; an error is written there too."""
    questions, answers = Path(arguments[0]), Path(arguments[1])
    asked = json.loads((questions / "asked.json").read_text(encoding="utf-8"))
    try:
        cases = load_cases(questions / "cases.pt")
        found: Any = evaluate(Path(asked["folder"]), asked["opened_as"], asked["options"], cases)
    except MMTuneError as error:
        found = {"error": error.message, "where": error.where}
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "where": asked["folder"]}
    torch.save(found, answers)


def raise_reported(found: Any) -> None:
    """Raise what went wrong in the other process.

    Raises:
        VerificationError: The folder could not be opened or evaluated.
    """
    if isinstance(found, dict):
        raise VerificationError(f"The written folder cannot be used: {found['error']}", where=found["where"])


if __name__ == "__main__":
    main(sys.argv[1:])
