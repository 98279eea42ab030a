"""``mmtune pretrain`` and ``mmtune finetune``: the same work with different defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmtune.cli.console import Console, Result
from mmtune.cli.display import training_display
from mmtune.cli.options import DATA, MEDIA_ROOT, OVERWRITE, POSITIVE, SEED, SET, one_of
from mmtune.cli.processes import in_processes, one_voice
from mmtune.cli.replaying import replay_step
from mmtune.cli.summaries import run_status_beside_errors, training_summary
from mmtune.train.launched import is_launched

TUNES = ("method", "lora", "qlora", "full")


def run(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE.yaml", help="Settings from a file.")] = None,
    method: Annotated[
        str | None, typer.Option(metavar="M", help="How perception reaches the LM: llava, vlora.")
    ] = None,
    preset: Annotated[str | None, typer.Option(metavar="P", help="Published settings, see `mmtune presets`.")] = None,
    base: Annotated[str | None, typer.Option(metavar="LLM", help="Folder or hub id of the language model.")] = None,
    vision: Annotated[
        str | None, typer.Option(metavar="ENCODER", help="Folder or hub id of the image encoder.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="CHECKPOINT", help="Trained model to go on from.")] = None,
    data: DATA = None,
    media_root: MEDIA_ROOT = None,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="Run directory. [default: under runs/]")] = None,
    tune: Annotated[str | None, typer.Option(metavar="|".join(TUNES), help="What is trained.")] = None,
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Passes over the data.")] = None,
    max_steps: Annotated[int | None, typer.Option(**POSITIVE, help="Stop after this many steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(**POSITIVE, help="Samples a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(metavar="F", help="Peak learning rate.")] = None,
    num_processes: Annotated[int | None, typer.Option(**POSITIVE, help="Processes, one a device.")] = None,
    device: Annotated[str | None, typer.Option(metavar="D", help="auto, cpu, cuda, cuda:1, mps.")] = None,
    seed: SEED = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show recipe and components, then stop.")] = False,
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
    from mmtune.train.recipe import dump, resolve

    verb = str(context.command.name)
    flags = {
        "method": method, "model.base": base, "model.vision": vision, "model.checkpoint": model, "data.train": data,
        "data.media_root": media_root, "tune.kind": tune and one_of("--tune", tune, TUNES),
        "train.epochs": epochs, "train.max_steps": max_steps,
        "train.batch_size": batch_size, "train.learning_rate": learning_rate, "train.seed": seed, "run.output": output,
        "run.num_processes": num_processes, "run.device": device,
    }  # fmt: skip
    resolved = resolve(verb, preset=preset, file=recipe, overrides=flags, sets=set_ or ())
    console: Console = context.obj
    if resolved.run.num_processes > 1 and not dry_run and not is_launched():
        return in_processes(console, resolved)
    from mmtune.train.run import train  # after the recipe, whose faults need no torch to be found

    with one_voice(console), run_status_beside_errors(console, resolved, verb, output):
        found = train(
            resolved, verb=verb, output=Path(output) if output else None, overwrite=overwrite, dry_run=dry_run,
            display=training_display(console), command=console.command,
        )  # fmt: skip
    if dry_run:
        found = {**found, "recipe": dump(resolved)}
    return Result(found, training_summary(found))
