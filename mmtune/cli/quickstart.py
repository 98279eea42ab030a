"""``mmtune quickstart``: everything once, on the embedded model, without network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmtune.cli.console import Result
from mmtune.cli.display import training_display
from mmtune.cli.tables import duration, plain_table

DEFAULT = ("llava", "vlora")


def run(
    context: typer.Context,
    method: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A method, or all; repeatable.")] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("quickstart"),
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of data and training.")] = 0,
) -> Result:
    """Draw data, train, evaluate and compare methods on the embedded model: minutes on two cores, no network.

    The default is llava and vlora side by side, with one report at the end. Several methods learn from the same rows in
    the same order for as many steps; one alone for as long as its own recipe says.
    """
    from mmtune.core.registry import canonical
    from mmtune.methods import METHODS
    from mmtune.nano.quickstart import quickstart
    from mmtune.train.files import writing

    names = [canonical(name) for name in method or DEFAULT]
    if "all" in names:
        names = METHODS.names()
    for name in names:
        METHODS.load(name, where="--method")  # a mistyped name must not wait for the end of the first training
    with writing(output):  # notice a place that cannot be written to before the work
        output.mkdir(parents=True, exist_ok=True)
    found = quickstart(tuple(dict.fromkeys(names)), output, seed=seed, progress=training_display(context.obj))
    errors = [result["error"] for result in found["methods"].values() if "error" in result]
    if not errors:
        return Result(found, _summary(found))
    return Result({"error": errors[0], **found}, _summary(found), exit_code=int(errors[0].get("exit", 1)))


def _summary(found: dict[str, Any]) -> str:
    rows = []
    for name, result in found.get("methods", {}).items():
        scores = {key: value for key, value in result.get("scores", {}).items() if isinstance(value, (int, float))}
        rows.append({"method": name, **scores, "time": duration(result.get("seconds") or 0)})
    told = [plain_table("", rows)]
    if "matched" in found:
        told.append(f"{'under' if found['matched'] else 'not under'} a matched budget; details: {found['comparison']}")
    return "\n".join((*told, f"report: {found.get('report')}"))
