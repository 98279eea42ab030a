"""``mmtune doctor``: is this installation able to do its work, and if not, what to type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mmtune.cli.checks import Finding
from mmtune.cli.console import Console, Result


def run(
    context: typer.Context,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data cache to check. [default: the user's]")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not try the hub.")] = False,
) -> Result:
    """Check versions, devices, bf16, disk, caches, extras, the hub and the embedded model.

    Every line says OK, WARN or FAIL and what to do. The exit code is 5 when something FAILs.
    """
    from mmtune.cli.checks import all_checks

    findings: list[Finding] = []
    for check in all_checks(cache=cache, offline=offline):
        findings += check()
    worst = max((finding.status for finding in findings), key=("OK", "WARN", "FAIL").index)
    values = {"status": worst, "checks": [finding.to_json() for finding in findings]}
    return Result(values, _render(context.obj, findings), exit_code=5 if worst == "FAIL" else 0)


def _render(console: Console, findings: Sequence[Finding]) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<4}  {finding.name:<{width}}  {finding.found}")
        if finding.fix:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.fix}")
    return "\n".join(lines)
