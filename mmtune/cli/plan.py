"""``mmtune plan``: what a run will take, before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmtune.cli.console import Console, Result
from mmtune.cli.display import training_display
from mmtune.cli.options import DATA, MEDIA_ROOT, OVERWRITE, SEED, SET
from mmtune.cli.recipes import (
    BASE,
    BATCH_SIZE,
    DRY_RUN,
    EPOCHS,
    LEARNING_RATE,
    MAX_STEPS,
    METHOD,
    MODEL,
    NUM_PROCESSES,
    OUTPUT,
    PRESET,
    RECIPE,
    RUN_DEVICE,
    TUNE,
    VISION,
    recipe_of,
)
from mmtune.cli.tables import duration, plain_table


def run(
    context: typer.Context,
    recipe: RECIPE = None,
    method: METHOD = None,
    preset: PRESET = None,
    base: BASE = None,
    vision: VISION = None,
    model: MODEL = None,
    data: DATA = None,
    media_root: MEDIA_ROOT = None,
    output: OUTPUT = None,
    tune: TUNE = None,
    epochs: EPOCHS = None,
    max_steps: MAX_STEPS = None,
    batch_size: BATCH_SIZE = None,
    learning_rate: LEARNING_RATE = None,
    num_processes: NUM_PROCESSES = None,
    device: RUN_DEVICE = None,
    seed: SEED = None,
    dry_run: DRY_RUN = False,
    overwrite: OVERWRITE = False,
    set_: SET = None,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="Device to plan for: h200, a100-80g, cpu, …; auto: this machine's.")
    ] = "auto",
    probe: Annotated[
        bool, typer.Option("--probe", help="Load the model here and run three steps on the largest batch.")
    ] = False,
) -> Result:
    """Tell memory, operations, steps, time and disk of a `finetune` with the same options.

    The model is built without weights and one step of the data's largest batch is gone through with empty tensors, so
    that this needs neither a GPU nor the weights. --dry-run and --overwrite change nothing here.
    """
    resolved = recipe_of("finetune", context.params)
    from mmtune.train.planning import planned

    console: Console = context.obj
    found = planned(resolved, "finetune", target, run_probe=probe, display=training_display(console))
    return Result(found, plan_summary(found))


def plan_summary(found: dict[str, Any]) -> str:
    """What a person wants to know of a plan."""
    from mmtune.report.page import format_flops

    memory = [{"memory": name, "GiB": f"{size / 2**30:.2f}"} for name, size in found["memory"].items()]
    devices = [
        {
            "device": row["device"],
            "GiB": f"{row['memory'] / 2**30:.0f}",
            "fits": "yes" if row["fits"] else "no",
            "largest batch": row["batch_size"],
        }
        for row in found["devices"]
    ]
    batch = found["batch"]
    lines = [
        f"{'fits' if found['fits'] else 'does not fit'} on {found['device']} in {found['precision']}: "
        f"{batch['rows']} rows of {batch['positions']} positions at the worst",
        plain_table("", memory),
        plain_table("", devices),
        f"a sample  {format_flops(found['flops_per_sample'])} to read".replace("\u00a0", " "),
        f"steps     {found['steps']}, about {duration(found['seconds_estimate'])}",
        f"disk      {found['disk_bytes'] / 1e6:.0f} MB",
    ]
    if found["advice"]:
        lines.append(f"to fit    {', '.join(found['advice'])}")
    if found["probe"]:
        lines.append(
            f"probe     {found['probe']['peak_bytes'] / 2**30:.2f} GiB measured, "
            f"{found['probe']['planned_bytes'] / 2**30:.2f} planned, {found['probe']['seconds_per_step']:.2f} s a step"
        )
    return "\n".join(lines)
