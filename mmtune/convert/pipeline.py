"""The steps of a conversion: read, arrange, write beside the target, verify, hash, rename."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from mmtune.convert.card import write_card
from mmtune.convert.detect import detect, form_of
from mmtune.convert.formats import HF, MERGED, MMTUNE, ONE_FORM, READERS, WHOLE, WRITERS, reader_name
from mmtune.convert.job import Job, Progress
from mmtune.convert.layout import Layout
from mmtune.convert.locate import source_place
from mmtune.convert.plan import Part, PlainPlan, Plan, Request
from mmtune.convert.push import check_repository
from mmtune.convert.staging import Stage, staged
from mmtune.convert.target import building, check_space, check_target
from mmtune.convert.verify import verify
from mmtune.convert.writer import parse_size, write_json, write_manifest, write_pickle, write_weights
from mmtune.core.errors import unknown_name

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def carry_out(job: Job, progress: Progress | None) -> tuple[Plan | PlainPlan, Layout, dict[str, Any] | None]:
    """Do a conversion: what was read, what was written, and what verification found."""
    max_bytes, dtype = parse_size(job.max_shard_size), _dtype(job.dtype)
    if job.push is not None:
        check_repository(job.push)
    place = source_place(job.source)
    check_target(job.target, [place.folder], overwrite=job.overwrite)
    name, form = _identify(place.folder, job.from_format)
    destination = MERGED if job.destination is None and (name, form) == (HF, "lora") else job.destination
    merge = destination == MERGED or (destination == HF and form == "lora")
    request = Request(job.llm, job.vision, job.settings, job.encoders, whole=destination in WHOLE, merge=merge)
    plan: Plan | PlainPlan = import_module(READERS[name]).read(place.folder, form, request, merge=merge, dtype=dtype)
    check_target(job.target, list(plan.sources), overwrite=job.overwrite)
    with ExitStack() as stack:
        stage = stack.enter_context(staged(plan)) if isinstance(plan, Plan) else None
        layout = _arrange(plan, stage, request, destination)
        check_space(job.target.parent, layout.num_bytes)
        temporary = stack.enter_context(building(job.target))
        digests = _write(temporary, layout, max_bytes, progress)
        verified = verify(temporary, plan, layout, stage) if job.verify else None
        if job.push is not None:
            write_card(temporary, job.push, plan, layout, verified)
        write_manifest(temporary, _facts(plan, layout, verified), digests)
    return plan, layout, verified


def _arrange(plan: Plan | PlainPlan, stage: Stage | None, request: Request, destination: str | None) -> Layout:
    target = destination or (MMTUNE if isinstance(plan, Plan) else HF)
    layout: Layout = import_module(WRITERS[target]).arrange(plan, stage, request)
    return layout


def _dtype(name: str | None) -> torch.dtype | None:
    if name in (None, "auto"):
        return None
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    found = _DTYPES.get(short.get(str(name), str(name)))
    if found is None:
        raise unknown_name("dtype", str(name), _DTYPES, where="--dtype")
    return found


def _identify(path: Path, given: str | None) -> tuple[str, str]:
    if given is None:
        found = detect(path)
        return found.format, found.form
    name = reader_name(given, where="--from")
    return name, "full" if name in ONE_FORM else form_of(path)


def _write(folder: Path, layout: Layout, max_bytes: int, progress: Progress | None) -> dict[Path, str]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("converting (MB)", done // 10**6, max(layout.num_bytes // 10**6, 1))

    digests: dict[Path, str] = {}
    for part in layout.parts:
        place = folder / part.folder
        if part.suffix == "safetensors":
            limit = max_bytes if part.sharded else max(layout.num_bytes, 1)
            digests |= write_weights(place, part.stem, part.entries, limit, advance)
        else:
            write_pickle(place / f"{part.stem}.{part.suffix}", part.entries, part.wrap, advance)
        _write_companions(place, part)
    layout.finish(folder)
    return digests


def _write_companions(folder: Path, part: Part) -> None:
    for name, document in part.documents.items():
        write_json(folder / name, document)
    for name, path in part.copies.items():
        shutil.copyfile(path, folder / name)


def _facts(plan: Plan | PlainPlan, layout: Layout, verified: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "schema": "mmtune/1",
        "kind": "checkpoint",
        "method": plan.method if isinstance(plan, Plan) else None,
        "from": plan.format,
        "to": layout.to,
        "verified": verified,
    }
