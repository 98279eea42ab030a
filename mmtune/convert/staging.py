"""An mmtune folder without weights: proves that a plan fits together before anything large is written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmtune.convert.damage import reading
from mmtune.convert.plan import Plan
from mmtune.convert.skeleton import build_skeleton
from mmtune.convert.tokenizer_files import stage_tokenizer, with_control_tokens
from mmtune.convert.writer import write_json
from mmtune.core.errors import CheckpointError
from mmtune.model.build import make_processor
from mmtune.model.modeling import MMTuneModel
from mmtune.model.processing import MMTuneProcessor, load_tokenizer


@dataclass(frozen=True, slots=True)
class Stage:
    """The small files of the mmtune folder that a plan describes, its model without memory, and its processor."""

    folder: Path
    model: MMTuneModel
    processor: MMTuneProcessor


@contextmanager
def staged(plan: Plan) -> Iterator[Stage]:
    """Write configs, tokenizer and processor of a plan into a temporary folder.

    Raises:
        CheckpointError: Settings, tokenizer or picture preparation that the source's own parts cannot follow.
        VerificationError: The method would own other tensors than the plan writes.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in plan.parts:
            for file, document in part.documents.items():
                write_json(folder / part.folder / file, document)
            for file, path in part.copies.items():
                shutil.copyfile(path, folder / part.folder / file)
        model = build_skeleton(folder, plan)
        processor = make_processor(model, _tokenizer(plan, model.host.vocab_size))
        processor.save_pretrained(folder)
        model.config.save_pretrained(folder)
        yield Stage(folder, model, processor)


def _tokenizer(plan: Plan, vocabulary: int) -> object:
    with tempfile.TemporaryDirectory() as name, reading(plan.tokenizer, "The tokenizer's files"):
        stage_tokenizer(plan.tokenizer, Path(name), legacy=plan.legacy_tokenizer)
        tokenizer = with_control_tokens(load_tokenizer(name), plan.control_tokens)
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"The tokenizer has {len(tokenizer)} tokens, the language model {vocabulary} rows.",
            where=str(plan.tokenizer),
            fix="use the tokenizer that was saved with the checkpoint",
        )
    return tokenizer
