"""Writes folders that plain transformers loads: language models, towers, and native LLaVA and LLaVA-NeXT."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mmtune.convert.damage import read_json, reading
from mmtune.convert.formats import HF, MERGED
from mmtune.convert.layout import Layout
from mmtune.convert.plan import PlainPlan, Plan, Request
from mmtune.convert.staging import Stage
from mmtune.convert.to_hf_llava import arrange_llava
from mmtune.convert.tokenizer_files import is_tiktoken, portable_settings, stage_tokenizer
from mmtune.convert.writer import write_json
from mmtune.core.errors import CheckpointError, NotPossibleError
from mmtune.model.processing import load_tokenizer


def arrange(plan: Plan | PlainPlan, stage: Stage | None, request: Request) -> Layout:
    """The layout that transformers has for this kind of model.

    Raises:
        NotPossibleError: A method or variant for which transformers has no class.
        CheckpointError: A tokenizer that does not fit its language model.
    """
    if isinstance(plan, PlainPlan):
        return _tower(plan) if plan.form == "vision" else _language(plan, MERGED if request.merge else HF)
    if stage is None or plan.method != "llava":
        reason = "its language model changes with every picture, which transformers has no class for"
        raise NotPossibleError(
            f"A '{plan.method}' model cannot be written for plain transformers: {reason}."
            if plan.method in ("vlora", "lavin")
            else f"transformers has no class for a '{plan.method}' model.",
            where=f"--to {HF}",
            fix="use --to mmtune, whose folders load as a Hugging Face AutoModel with mmtune installed",
        )
    return arrange_llava(plan, stage)


def _tower(plan: PlainPlan) -> Layout:
    return Layout(plan.parts, "tower", HF)


def _language(plan: PlainPlan, target: str) -> Layout:
    rows = int(plan.part.documents["config.json"]["vocab_size"])
    notes: tuple[str, ...] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    if plan.tokenizer is None:
        notes = ("There is no tokenizer beside the weights, so that the written folder has none.",)
    else:
        tokenizer = _read_tokenizer(plan.tokenizer, rows)

    def finish(folder: Path) -> None:
        if tokenizer is not None and plan.tokenizer is not None:
            write_tokenizer(tokenizer, folder)
            model = plan.tokenizer / "tokenizer.model"
            if model.is_file() and not is_tiktoken(model):
                shutil.copyfile(model, folder / model.name)

    return Layout(plan.parts, "causal-lm", target, finish, notes=notes)


def _read_tokenizer(source: Path, rows: int) -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory() as name, reading(source, "The tokenizer's files"):
        stage_tokenizer(source, Path(name))
        tokenizer = load_tokenizer(name)
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"The tokenizer has {len(tokenizer)} tokens, tensor 'model.embed_tokens.weight' {rows} rows.",
            where=str(source),
            fix="use the tokenizer that belongs to these weights",
        )
    return tokenizer


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer under a class name that every version of transformers knows."""
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = portable_settings(read_json(path))
    write_json(path, settings)
