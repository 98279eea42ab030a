"""Writes mmtune folders: the plan as it is, with the source's own small files beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from mmtune.convert import to_hf
from mmtune.convert.formats import HF, MERGED, MMTUNE
from mmtune.convert.layout import Layout
from mmtune.convert.plan import OriginalFiles, PlainPlan, Plan, Request
from mmtune.convert.staging import Stage
from mmtune.convert.writer import write_json
from mmtune.core.errors import NotPossibleError

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
        if plan.original is not None:
            keep_original(plan.original, folder / ORIGINAL)

    return Layout(plan.parts, "mmtune", MERGED if request.merge else MMTUNE, finish)


def keep_original(original: OriginalFiles, folder: Path) -> None:
    """Keep what the source says of itself, so that its format can be written again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in original.files.items():
        shutil.copyfile(path, folder / name)
    write_json(folder / "config.json", original.config)
    write_json(folder / FACTS, {"format": original.format, "form": original.form, **original.facts})
