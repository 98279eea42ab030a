"""``convert``: a published checkpoint in, a verified mmtune folder out. Light to import: Ctrl-C is clean at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune.convert.formats import writer_name
from mmtune.convert.interruption import interruptible
from mmtune.convert.job import Job, Progress


def convert(
    source: str | Path,
    output: str | Path,
    *,
    from_format: str | None = None,
    to: str | None = None,
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
        from_format: A name of :data:`mmtune.convert.formats.READERS`; found by content when absent.
        to: A name of :data:`mmtune.convert.formats.WRITERS`. When absent ``mmtune``, and ``hf`` for a language model
            or a tower alone.
        llm: Base language model for checkpoints that hold none.
        vision: Vision tower, instead of the one the checkpoint names; ``encoders={"image": …}`` is the same.
        encoders: Further encoders by the checkpoint's own names for them.
        dtype: Precision to write; as stored when None.
        max_shard_size: Largest weight file.
        verify: Compare with an independent evaluation of the source.
        overwrite: Replace an existing checkpoint at ``output``.
        push: ``ORG/NAME`` to upload the written folder to.
        settings: What the format does not hold.
        progress: Called with what is done, and how many megabytes of how many.

    Returns:
        The JSON object of the verb.

    Raises:
        MMTuneError: UsageError (options, target), CheckpointError (source), NotPossibleError (format or variant),
            ResourceError (disk, memory, hub), VerificationError, Interruption. All but a failed upload leave nothing.
    """
    given = dict(encoders or {})
    job = Job(
        source=str(source),
        target=Path(output),
        from_format=from_format,
        destination=writer_name(to) if to is not None else None,
        llm=llm,
        vision=vision if vision is not None else given.pop("image", None),
        encoders=given,
        dtype=dtype,
        max_shard_size=max_shard_size,
        verify=verify,
        overwrite=overwrite,
        settings=dict(settings or {}),
        push=push,
    )
    return _run(job, progress)


def _run(job: Job, progress: Progress | None) -> dict[str, Any]:
    began = time.monotonic()
    with interruptible(job.target):
        from mmtune.convert.pipeline import carry_out

        plan, layout, verified = carry_out(job, progress)
    from mmtune.core.memory import peak_memory_bytes

    result = {
        "output": str(job.target),
        "from": plan.format,
        "to": layout.to,
        "form": plan.form,
        "tensors": len(layout.entries),
        "parameters": layout.num_parameters,
        "bytes": layout.num_bytes,
        "verified": verified,
        "notes": [*plan.notes, *layout.notes],
        "peak_rss_bytes": peak_memory_bytes(),
        "seconds": round(time.monotonic() - began, 3),
    }
    if job.push is not None:
        from mmtune.convert.push import push_folder

        result["pushed"] = push_folder(job.target, job.push)
    return result
