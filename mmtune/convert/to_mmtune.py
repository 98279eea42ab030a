"""Writes mmtune folders: the plan as it is, with the source's own small files beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from mmtune.convert import to_hf
from mmtune.convert.damage import read_json
from mmtune.convert.formats import HF, MERGED, MMTUNE
from mmtune.convert.layout import Layout
from mmtune.convert.plan import OriginalFiles, PlainPlan, Plan, Request
from mmtune.convert.staging import Stage
from mmtune.convert.writer import write_json
from mmtune.core.errors import NotPossibleError
from mmtune.model.checkpoint import probe
from mmtune.model.weights import LANGUAGE, probed_names

ORIGINAL = "original"
FACTS = "format.json"


def arrange(plan: Plan | PlainPlan, stage: Stage | None, request: Request) -> Layout:
    """The layout of an mmtune folder.

    Raises:
        NotPossibleError: A language model or a tower alone, which has no method.
    """
    if isinstance(plan, PlainPlan) and request.merge:
        return to_hf.arrange(plan, stage, request)
    if isinstance(plan, PlainPlan) or stage is None:
        raise NotPossibleError(
            f"A '{plan.form}' model alone has no method, so that it is no mmtune checkpoint.",
            where="--to",
            fix=f"use --to {HF} and give the folder to finetune with --base or --vision",
        )

    def finish(folder: Path) -> None:
        shutil.copytree(stage.folder, folder, dirs_exist_ok=True)
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", {**config, "base": {**config["base"], "probe": _probe(plan, stage)}})
        if plan.original is not None:
            keep_original(plan.original, folder / ORIGINAL)

    return Layout(plan.parts, "mmtune", MERGED if request.merge else MMTUNE, finish)


def _probe(plan: Plan, stage: Stage) -> list[float] | None:
    """A few weights of the base; a base that stays a reference is told by its revision instead."""
    language = plan.part("language_model")
    if language is None:
        return plan.base.get("probe")
    names = probed_names(stage.model)
    entries = {entry.name: entry for entry in language.entries if entry.name in names}
    if len(entries) < len(names):
        return None
    return probe(stage.model, {f"{LANGUAGE}{name}": entries[name].read().to(entries[name].dtype) for name in names})


def keep_original(original: OriginalFiles, folder: Path) -> None:
    """Keep what the source says of itself, so that its format can be written again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in original.files.items():
        shutil.copyfile(path, folder / name)
    write_json(folder / "config.json", original.config)
    write_json(folder / FACTS, {"format": original.format, "form": original.form, **original.facts})
