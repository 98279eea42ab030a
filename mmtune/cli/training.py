"""``mmtune pretrain`` and ``mmtune finetune``: the same work with different defaults."""

from __future__ import annotations

from typing import Annotated

import typer

from mmtune.cli.console import Console, Result
from mmtune.cli.display import training_display
from mmtune.cli.options import DATA, MEDIA_ROOT, OVERWRITE, POSITIVE, SEED, SET
from mmtune.cli.processes import in_processes, one_voice
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
from mmtune.cli.replaying import replay_step
from mmtune.cli.summaries import run_status_beside_errors, training_summary
from mmtune.train.launched import is_launched


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
    replay: Annotated[str | None, typer.Option(metavar="RUN", help="Run one step of a run again.")] = None,
    step: Annotated[int | None, typer.Option(**POSITIVE, help="The step to replay.")] = None,
) -> Result:
    """Train a method, LoRA or the whole model on any Hugging Face language model.

    Without --base, --vision and --data this uses the embedded nano model and demo data. The same command on an
    unfinished run continues it. Settings: defaults < preset < recipe file < options < --set.
    """
    if replay is not None or step is not None:
        return replay_step(context.obj, replay, step, device)
    from mmtune.train.recipe import dump

    verb = str(context.command.name)
    resolved = recipe_of(verb, context.params)
    console: Console = context.obj
    if resolved.run.num_processes > 1 and not dry_run and not is_launched():
        return in_processes(console, resolved)
    from mmtune.train.run import train  # after the recipe, whose faults need no torch to be found

    with one_voice(console), run_status_beside_errors(console, resolved, verb):
        found = train(
            resolved, verb=verb, overwrite=overwrite, dry_run=dry_run, display=training_display(console),
            command=console.command,
        )  # fmt: skip
    if dry_run:
        found = {**found, "recipe": dump(resolved)}
    return Result(found, training_summary(found))
