"""The steps of a conversion: read, write beside the target, verify, hash, rename."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from mmtune.convert.damage import read_json, reading
from mmtune.convert.detect import PLANNED, READABLE, detect, form_of, not_in_this_version
from mmtune.convert.job import MERGED, Job, Progress
from mmtune.convert.locate import source_folder
from mmtune.convert.plan import Part, Plan, Request
from mmtune.convert.skeleton import build_skeleton
from mmtune.convert.target import building, check_space, check_target
from mmtune.convert.verify import verify
from mmtune.convert.writer import parse_size, write_json, write_manifest, write_weights
from mmtune.core.errors import CheckpointError, unknown_name
from mmtune.core.registry import canonical
from mmtune.model.build import make_processor
from mmtune.model.processing import load_tokenizer

_READERS = {"llava": "mmtune.convert.llava", "vlora": "mmtune.convert.vlora"}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def carry_out(job: Job, progress: Progress | None) -> tuple[Plan, dict[str, Any] | None]:
    """Do a conversion: what was written, and what verification found."""
    max_bytes, dtype = parse_size(job.max_shard_size), _dtype(job.dtype)
    place = source_folder(job.source)
    check_target(job.target, [place.folder], overwrite=job.overwrite)
    request = Request(llm=job.llm, vision=job.vision, settings=job.settings)
    plan = _read(place.folder, job.from_format, request, merge=job.destination == MERGED, dtype=dtype)
    check_target(job.target, list(plan.sources), overwrite=job.overwrite)
    check_space(job.target.parent, plan.num_bytes)
    with building(job.target) as temporary:
        digests = _write(temporary, plan, max_bytes, progress)
        verified = verify(temporary, plan) if job.verify else None
        write_manifest(temporary, _facts(plan, verified), digests)
    return plan, verified


def _dtype(name: str | None) -> torch.dtype | None:
    if name in (None, "auto"):
        return None
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    found = _DTYPES.get(short.get(str(name), str(name)))
    if found is None:
        raise unknown_name("dtype", str(name), _DTYPES, where="--dtype")
    return found


def _read(folder: Path, given: str | None, request: Request, *, merge: bool, dtype: torch.dtype | None) -> Plan:
    if given is None:
        found = detect(folder)
        name, form = found.format, found.form
    else:
        name, form = canonical(given).replace("_", "-"), form_of(folder)
        if name in PLANNED:
            raise not_in_this_version(name, "--from")
        if name not in READABLE:
            raise unknown_name("format", given, READABLE, where="--from")
    plan: Plan = import_module(_READERS[name]).read(folder, form, request, merge=merge, dtype=dtype)
    return plan


def _write(folder: Path, plan: Plan, max_bytes: int, progress: Progress | None) -> dict[Path, str]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("converting (MB)", done // 10**6, max(plan.num_bytes // 10**6, 1))

    digests: dict[Path, str] = {}
    for part in plan.parts:
        limit = max_bytes if part.sharded else max(plan.num_bytes, 1)
        digests |= write_weights(folder / part.folder, part.stem, part.entries, limit, advance)
        _write_companions(folder / part.folder, part)
    _write_model_files(folder, plan)
    return digests


def _write_companions(folder: Path, part: Part) -> None:
    for name, document in part.documents.items():
        write_json(folder / name, document)
    for name, path in part.copies.items():
        shutil.copyfile(path, folder / name)


def _write_model_files(folder: Path, plan: Plan) -> None:
    """config.json and the processor, as the model class itself writes them, from a model without memory."""
    skeleton = build_skeleton(folder, plan)
    with staged_tokenizer(plan) as tokenizer_folder, reading(plan.tokenizer, "The tokenizer's files"):
        tokenizer = load_tokenizer(tokenizer_folder)
    if len(tokenizer) > skeleton.host.vocab_size:
        raise CheckpointError(
            f"The tokenizer has {len(tokenizer)} tokens, the language model {skeleton.host.vocab_size} rows.",
            where=str(plan.tokenizer),
            fix="use the tokenizer that was saved with the checkpoint",
        )
    make_processor(skeleton, tokenizer).save_pretrained(folder)
    skeleton.config.save_pretrained(folder)


@contextmanager
def staged_tokenizer(plan: Plan) -> Iterator[Path]:
    """The tokenizer's files, arranged so that they load with the ids of the training.

    The LLaVA code trains and answers with the SentencePiece form, so a tokenizer.json beside it does not count; VLoRA
    trains with the fast, legacy form, whatever ``legacy`` says.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in _TOKENIZER_FILES:
            if (plan.tokenizer / file).is_file():
                shutil.copyfile(plan.tokenizer / file, folder / file)
        if plan.legacy_tokenizer:
            _set_legacy(folder / "tokenizer_config.json")
        elif (folder / "tokenizer.model").is_file():
            (folder / "tokenizer.json").unlink(missing_ok=True)
        yield folder


def _set_legacy(path: Path) -> None:
    values = read_json(path) if path.is_file() else {}
    write_json(path, {**values, "legacy": True})


def _facts(plan: Plan, verified: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "schema": "mmtune/1",
        "kind": "checkpoint",
        "method": plan.method,
        "from": plan.format,
        "verified": verified,
    }
