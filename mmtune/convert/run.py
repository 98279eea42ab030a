"""Converts a checkpoint: detect, read, write beside the target, verify, hash, rename."""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from mmtune.convert.detect import PLANNED, READABLE, detect, form_of, not_in_this_version
from mmtune.convert.locate import source_folder
from mmtune.convert.plan import Part, Plan, Request
from mmtune.convert.target import building, check_space, check_target
from mmtune.convert.writer import parse_size, write_json, write_manifest, write_weights
from mmtune.core.errors import CheckpointError, NotPossibleError, UsageError, unknown_name
from mmtune.core.registry import canonical

Progress = Callable[[str, int, int], None]  # what, megabytes done, megabytes in all

WRITABLE = ("mmtune", "merged")
_PLANNED_TARGETS = ("hf", "adapter", "llava", "vlora", "lavin", "multi-token")
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


def convert(
    source: str | Path,
    output: str | Path,
    *,
    from_format: str | None = None,
    to: str = "mmtune",
    llm: str | None = None,
    vision: str | None = None,
    encoders: Mapping[str, str] | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    verify: bool = True,
    overwrite: bool = False,
    push: str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Turn a published checkpoint into a self-contained mmtune folder and prove that it answers the same.

    Args:
        source: Folder or hub id of the checkpoint.
        output: Folder to write; it appears whole or not at all.
        from_format: ``llava`` or ``vlora``; found by content when absent.
        to: ``mmtune``, or ``merged`` to fold a LoRA into the language model.
        llm: Base language model for checkpoints that hold none.
        vision: Vision tower, instead of the one the checkpoint names.
        encoders: ``{"image": path}`` is the same as ``vision``.
        dtype: Precision to write; as stored when None.
        max_shard_size: Largest weight file, ``"5GB"``.
        verify: Compare with an independent evaluation of the source.
        overwrite: Replace an existing checkpoint at ``output``.
        push: ``ORG/NAME`` to upload the written folder to.
        settings: What the format does not hold.
        progress: Called with what is done, and how many megabytes of how many.

    Returns:
        The JSON object of the verb.

    Raises:
        UsageError: An unknown option value, or a target that may not be replaced.
        CheckpointError: A damaged or contradictory source.
        NotPossibleError: A format or variant that this version does not convert.
        ResourceError: Disk, memory or hub.
        VerificationError: The result is not equal to the source; nothing is left.
        Interruption: Ctrl-C; nothing is left.
    """
    began = time.monotonic()
    target = Path(output)
    max_bytes, kind, destination = parse_size(max_shard_size), _dtype(dtype), _destination(to)
    place = source_folder(str(source))
    check_target(target, [place.folder], overwrite=overwrite)
    request = Request(llm=llm, vision=_vision(vision, encoders), settings=dict(settings or {}))
    plan = _read(place.folder, from_format, request, merge=destination == "merged", dtype=kind)
    check_target(target, list(plan.sources), overwrite=overwrite)
    num_bytes = sum(entry.num_bytes for part in plan.parts for entry in part.entries)
    check_space(target.parent, num_bytes)
    with building(target) as temporary:
        _write(temporary, plan, max_bytes, num_bytes, progress)
        verified = _verify(temporary, plan) if verify else None
        write_manifest(temporary, _facts(plan, verified))
    result = {
        "output": str(target),
        "from": plan.format,
        "to": destination,
        "form": plan.form,
        "tensors": sum(len(part.entries) for part in plan.parts),
        "parameters": sum(entry.num_bytes // entry.dtype.itemsize for part in plan.parts for entry in part.entries),
        "bytes": num_bytes,
        "verified": verified,
        "notes": list(plan.notes),
        "peak_rss_bytes": _peak_memory(),
        "seconds": round(time.monotonic() - began, 3),
    }
    if push is not None:
        from mmtune.convert.push import push_folder

        result["pushed"] = push_folder(target, push)
    return result


def _dtype(name: str | None) -> torch.dtype | None:
    if name in (None, "auto"):
        return None
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    found = _DTYPES.get(short.get(str(name), str(name)))
    if found is None:
        raise unknown_name("dtype", str(name), _DTYPES, where="--dtype")
    return found


def _destination(to: str) -> str:
    name = canonical(to).replace("_", "-")
    if name in WRITABLE:
        return name
    if name in _PLANNED_TARGETS:
        raise NotPossibleError(
            f"Writing '{name}' is not part of this version.",
            where="--to",
            fix=f"use one of: {', '.join(WRITABLE)}",
            allowed=WRITABLE,
        )
    raise unknown_name("format", to, WRITABLE, where="--to")


def _vision(vision: str | None, encoders: Mapping[str, str] | None) -> str | None:
    given = dict(encoders or {})
    image = given.pop("image", None)
    if given:
        raise UsageError(
            f"This format has no encoder '{next(iter(given))}'.",
            where="--encoder",
            fix="use --encoder image=PATH or --vision PATH",
        )
    return vision if vision is not None else image


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


def _write(folder: Path, plan: Plan, max_bytes: int, num_bytes: int, progress: Progress | None) -> None:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("converting (MB)", done // 10**6, max(num_bytes // 10**6, 1))

    for part in plan.parts:
        limit = max_bytes if part.sharded else max(num_bytes, 1)
        write_weights(folder / part.folder, part.stem, part.entries, limit, advance)
        _write_companions(folder / part.folder, part)
    _write_model_files(folder, plan)


def _write_companions(folder: Path, part: Part) -> None:
    for name, document in part.documents.items():
        write_json(folder / name, document)
    for name, path in part.copies.items():
        shutil.copyfile(path, folder / name)


def _write_model_files(folder: Path, plan: Plan) -> None:
    """config.json and the processor, as the model class itself writes them, from a model without memory."""
    from mmtune.convert.skeleton import build_skeleton
    from mmtune.model.build import make_processor
    from mmtune.model.processing import load_tokenizer

    skeleton = build_skeleton(folder, plan)
    with staged_tokenizer(plan) as tokenizer_folder:
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
def staged_tokenizer(plan: Plan) -> Any:
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
    from mmtune.convert.tensors import read_json

    values = read_json(path) if path.is_file() else {}
    write_json(path, {**values, "legacy": True})


def _verify(folder: Path, plan: Plan) -> dict[str, Any]:
    from mmtune.convert.verify import verify

    return verify(folder, plan)


def _facts(plan: Plan, verified: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "schema": "mmtune/1",
        "kind": "checkpoint",
        "method": plan.method,
        "from": plan.format,
        "verified": verified,
    }


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
