"""``mmtune eval``: one benchmark, one model, one object of scores."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from mmtune.cli.console import Result
from mmtune.cli.display import progress_display
from mmtune.cli.models import load_for
from mmtune.cli.options import DEVICE, DTYPE, MEDIA_ROOT, MODEL, POSITIVE, check_data, one_of
from mmtune.cli.summaries import eval_summary
from mmtune.core.errors import ScoreError

RULES = ("current", "2024")
_NAMES = (
    "mmbench, mmbench_cn, ccbench, mme, scienceqa, hallusionbench, mmmu, seedbench, pope, textvqa, vqav2, gqa, vizwiz, "
    "coco_caption, qa or nll."
)


def run(
    context: typer.Context,
    benchmark: Annotated[str, typer.Option(metavar="NAME", help=_NAMES)],
    data: Annotated[str, typer.Option(metavar="PATH", help="The benchmark's data file or folder.")],
    model: MODEL = None,
    media_root: MEDIA_ROOT = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="F.jsonl", help="Score these answers, load no model.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for results and predictions. [default: one under runs/eval; none with --predictions]",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(**POSITIVE, help="Only the first rows.")] = None,
    batch_size: Annotated[int, typer.Option(**POSITIVE, help="Rows at once.")] = 8,
    rule: Annotated[
        str, typer.Option(metavar="current|2024", help="Which version of the scorer of multiple choice.")
    ] = "current",
    pandas_na: Annotated[
        bool, typer.Option("--pandas-na", help="Read 'None' and 'NA' as empty, as pandas does.")
    ] = False,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Score although answers are missing.")] = False,
    min_score: Annotated[float | None, typer.Option(metavar="F", help="Exit with 8 below this score.")] = None,
    max_failures: Annotated[int | None, typer.Option(metavar="N", min=0, help="Failed rows to put up with.")] = None,
    device: DEVICE = "auto",
    dtype: DTYPE = "auto",
) -> Result:
    """Score a model on a public benchmark, or on your own data: `qa` (is the answer right?) or `nll` (loss per token).

    Data are local files: VLMEvalKit's TSV, LLaVA's and the official files, or parquet of Hugging Face. Without --model
    this takes the newest finished run under runs/, else the bundled nano model. Interrupted, the same command goes on.
    """
    one_of("--rule", rule, RULES)
    from mmtune.evaluation.benchmarks.base import Options
    from mmtune.evaluation.run import Limits, evaluate, make_task

    options = Options(rule=rule, pandas_na=pandas_na)
    task = make_task(benchmark, options)  # a mistyped name must not wait for the model
    check_data(data)
    network, processor, name = None, None, None
    if predictions is None:
        network, processor, name = load_for(context.obj, model, device=device, dtype=dtype)
        output = output or default_output(task.name, name, data)
    limits = Limits(max_failures=max_failures, allow_partial=allow_partial, min_score=min_score)
    try:
        with progress_display(context.obj, benchmark) as progress:
            found = evaluate(
                network, processor, benchmark=benchmark, data=data, media_root=tuple(media_root or ()), output=output,
                predictions=predictions, limit=limit, batch_size=batch_size, limits=limits, options=options,
                model_name=name, progress=progress,
            )  # fmt: skip
    except ScoreError as error:
        context.obj.partial = error.result or {}  # the scores stand beside the error
        context.obj.note(eval_summary(dict(context.obj.partial)))
        raise
    return Result(found, eval_summary(found))


def default_output(benchmark: str, model: str, data: str) -> Path:
    """The folder of an evaluation that names none, the same for the same benchmark, model and data, so that it goes on.

    Answers carry the hashes of model and data in their key, so that another model of the same name is asked anew.
    """
    places = [str(Path(place).absolute()) if Path(place).exists() else place for place in (model, data)]
    short = hashlib.sha256("\n".join(places).encode()).hexdigest()[:8]
    return Path("runs", "eval", f"{benchmark}_{short}")
