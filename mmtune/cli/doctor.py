"""``mmtune doctor``: is this installation able to do its work, and if not, what to type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mmtune.cli.checks import Finding
from mmtune.cli.console import Result
from mmtune.core.errors import ResourceError


def run(
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
    failed = next((finding for finding in findings if finding.status == "FAIL"), None)
    if failed is None:
        return Result(values, _render(findings))
    error = ResourceError(f"{failed.name}: {failed.found}", where=failed.name, fix=failed.fix)
    return Result({"error": error.to_json(), **values}, _render(findings), exit_code=error.exit_code)


def _render(findings: Sequence[Finding]) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<4}  {finding.name:<{width}}  {finding.found}")
        if finding.fix:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.fix}")
    return "\n".join(lines)
