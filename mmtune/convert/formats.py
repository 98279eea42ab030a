"""The formats that are read and written, by name. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping

from mmtune.core.errors import MMTuneError, NotPossibleError, unknown_name
from mmtune.core.registry import canonical

MMTUNE, MERGED, HF = "mmtune", "merged", "hf"

# Format -> module with ``read(path, form, request, *, merge, dtype) -> Plan | PlainPlan``.
READERS: Mapping[str, str] = {
    "llava": "mmtune.convert.llava",
    "vlora": "mmtune.convert.vlora",
    "multi-token": "mmtune.convert.multi_token",
    "lavin": "mmtune.convert.lavin",
    "meta-llama": "mmtune.convert.meta_llama",
    "openai-clip": "mmtune.convert.openai_clip",
    MMTUNE: "mmtune.convert.own",
    HF: "mmtune.convert.hf",
}
ONE_FORM = ("lavin",)  # what their checkpoints consist of is for their readers to find
# Target -> module with ``arrange(plan, stage, request) -> Layout``.
WRITERS: Mapping[str, str] = {
    MMTUNE: "mmtune.convert.to_mmtune",
    MERGED: "mmtune.convert.to_mmtune",
    HF: "mmtune.convert.to_hf",
    "adapter": "mmtune.convert.to_adapter",
    "llava": "mmtune.convert.to_llava",
    "vlora": "mmtune.convert.to_vlora",
    "multi-token": "mmtune.convert.to_multi_token",
    "lavin": "mmtune.convert.to_lavin",
}
# Targets that need all weights in the written folder, even where a hub id would do.
WHOLE = (MERGED, HF)
_KNOWN_FORMATS = ("lavin", "multi-token", HF, "adapter")


def reader_name(given: str, *, where: str) -> str:
    """The registered name of a format as typed.

    Raises:
        UsageError: No such format.
        NotPossibleError: A format that is known but not read by this version.
    """
    return _name(given, READERS, where)


def writer_name(given: str, *, where: str = "--to") -> str:
    """The registered name of a target as typed.

    Raises:
        UsageError: No such target.
        NotPossibleError: A target that is known but not written by this version.
    """
    return _name(given, WRITERS, where)


def _name(given: str, known: Mapping[str, str], where: str) -> str:
    name = canonical(given).replace("_", "-")
    if name in known:
        return name
    if name in (*READERS, *WRITERS, *_KNOWN_FORMATS):
        raise unavailable(name, known, where)
    raise unknown_name("format", given, known, where=where)


def unavailable(name: str, known: Mapping[str, str], where: str) -> MMTuneError:
    """The error for a format that is known, but not in this direction."""
    direction = "Reading" if known is READERS else "Writing"
    return NotPossibleError(
        f"{direction} '{name}' is not part of this version.",
        where=where,
        fix=f"use one of: {', '.join(known)}",
        allowed=known,
    )
