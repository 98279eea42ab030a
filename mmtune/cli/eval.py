"""``mmtune eval``: one benchmark, one model, one object of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmtune.cli.console import Result
from mmtune.cli.display import progress_display
from mmtune.cli.models import load_for
from mmtune.cli.options import DEVICE, DTYPE, MEDIA_ROOT, MODEL, POSITIVE, check_data, one_of
from mmtune.cli.summaries import eval_summary
from mmtune.core.errors import NotPossibleError, ScoreError


def run(
    context: typer.Context,
    benchmark: Annotated[str, typer.Option(metavar="NAME", help="qa or nll.")],
    data: Annotated[str, typer.Option(metavar="PATH", help="The benchmark's data file or folder.")],
    model: MODEL = None,
    media_root: MEDIA_ROOT = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="F.jsonl", help="Score these answers, load no model.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for results and predictions.")] = None,
    limit: Annotated[int | None, typer.Option(**POSITIVE, help="Only the first rows.")] = None,
    batch_size: Annotated[int, typer.Option(**POSITIVE, help="Rows at once.")] = 8,
    rule: Annotated[str | None, typer.Option(metavar="current|2024", help="Which version of the scorer.")] = None,
    pandas_na: Annotated[
        bool, typer.Option("--pandas-na", help="Read 'None' and 'NA' as empty, as pandas does.")
    ] = False,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Score although answers are missing.")] = False,
    min_score: Annotated[float | None, typer.Option(metavar="F", help="Exit with 8 below this score.")] = None,
    max_failures: Annotated[int | None, typer.Option(metavar="N", min=0, help="Failed rows to put up with.")] = None,
    device: DEVICE = "auto",
    dtype: DTYPE = "auto",
) -> Result:
    """Score a model on data of your own: `qa` (is the answer right?) or `nll` (loss per target token).

    Without --model this takes the newest finished run under runs/, else the bundled nano model.
    """
    if pandas_na or one_of("--rule", rule or "current", ("current", "2024")) != "current":
        option = "--pandas-na" if pandas_na else "--rule"
        message = f"{option} concerns the scorers of public benchmarks, '{benchmark}' has one rule only."
        raise NotPossibleError(message, where=option, fix=f"leave {option} out")
    from mmtune.evaluation.benchmarks import BENCHMARKS
    from mmtune.evaluation.run import Limits, evaluate

    BENCHMARKS.load(benchmark)  # a mistyped name must not wait for the model
    check_data(data)
    network, processor, name = None, None, None
    if predictions is None:
        network, processor, name = load_for(context.obj, model, device=device, dtype=dtype)
    limits = Limits(max_failures=max_failures, allow_partial=allow_partial, min_score=min_score)
    try:
        with progress_display(context.obj, benchmark) as progress:
            found = evaluate(
                network, processor, benchmark=benchmark, data=data, media_root=tuple(media_root or ()), output=output,
                predictions=predictions, limit=limit, batch_size=batch_size, limits=limits, model_name=name,
                progress=progress,
            )  # fmt: skip
    except ScoreError as error:
        context.obj.partial = error.result or {}  # the scores stand beside the error
        context.obj.note(eval_summary(dict(context.obj.partial)))
        raise
    return Result(found, eval_summary(found))
