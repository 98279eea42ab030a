"""``mmtune pretrain`` and ``mmtune finetune``: a recipe in, a run directory and its result out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmtune.core.errors import DataError, Interruption, MMTuneError, NotPossibleError, Stopped, UsageError
from mmtune.core.memory import PeakMemory
from mmtune.model.build import resolve_device
from mmtune.model.lora import largest_rank
from mmtune.train.data_setup import make_data
from mmtune.train.display import Display, LoggingDisplay, RecordedDisplay, SilentDisplay
from mmtune.train.feature_setup import KeptFeatures, keep_features
from mmtune.train.foresight import foreseen
from mmtune.train.guards import Watchdog
from mmtune.train.interrupt import StopRequest
from mmtune.train.lock import RunLock
from mmtune.train.loop import Crew, Loop, total_steps
from mmtune.train.metrics import Clock, MetricsFile
from mmtune.train.model_setup import make_model, refuse_impossible
from mmtune.train.optim import parameter_groups
from mmtune.train.outcome import components, result_of, write_report
from mmtune.train.precision import choose_precision, make_accelerator, seed_everything, start_trackers
from mmtune.train.recipe import Recipe, check_consistency, check_method_settings
from mmtune.train.rejects import Ledger
from mmtune.train.run_directory import RunDirectory, begins_anew, choose_folder, clear, default_command, open_run
from mmtune.train.saver import Saver
from mmtune.train.state import Checkpoint, find_checkpoint, remove_partial
from mmtune.train.strategy import refuse_strategy, spread
from mmtune.train.team import Team, has_voice
from mmtune.train.weighing import refuse_oversize


def train(
    recipe: Recipe,
    *,
    verb: str = "finetune",
    model: str | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    display: Display | None = None,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Train what a recipe says, or go on where the same run stopped.

    Args:
        verb: ``pretrain`` or ``finetune``; with demo data it decides between captions and questions.
        model: Checkpoint to start from, in place of the recipe's ``model.checkpoint``.
        output: Run directory, in place of the recipe's ``run.output``.
        overwrite: Start anew in a directory that holds another or a finished run; a run that the same command has begun
            and not finished goes on.
        dry_run: Build everything, show it, train and write nothing.
        command: What ``command.txt`` says; the command line of this process when absent.

    Returns:
        The JSON result of the verb.

    Raises:
        Interruption: A signal asked to stop; calling it again goes on.
        MMTuneError: Everything else that a user can meet, by its own class.
    """
    if model is not None and model != recipe.model.checkpoint:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"checkpoint": model})})
    check_consistency(recipe)
    check_method_settings(recipe)
    device = resolve_device(recipe.run.device)
    refuse_impossible(recipe, device)
    job = Job(recipe, verb, device, display or LoggingDisplay())
    team = job.team
    folder = team.on_main(lambda: choose_folder(recipe, verb, output))
    if dry_run:
        return job.rehearse(folder)
    if recipe.run.num_processes > 1 and team.size == 1:
        message = f"run.num_processes is {recipe.run.num_processes}, and this is a process alone."
        fix = "call the command (mmtune finetune …), or start your program with accelerate launch"
        raise NotPossibleError(message, where=recipe.where("run.num_processes"), fix=fix)
    said = list(command) if command is not None else default_command()
    overwrite = overwrite and team.on_main(lambda: begins_anew(folder, recipe, verb, said))
    team.on_main(lambda: open_run(folder, recipe, verb, overwrite=overwrite) and None)
    try:
        with StopRequest() as stop, ExitStack() as stack:
            team.on_main(lambda: stack.enter_context(RunLock(folder)) and None)
            if overwrite:
                team.on_main(lambda: clear(folder))
            return job.perform(RunDirectory(folder), stop, said)
    except Stopped as error:
        raise error.interruption() from error


class Job:
    """One call of :func:`train`, in one of the processes that share it."""

    def __init__(self, recipe: Recipe, verb: str, device: torch.device, display: Display) -> None:
        self.recipe, self.verb = recipe, verb
        self.precision = choose_precision(recipe.train.precision, device)
        refuse_strategy(recipe, self.precision)
        self.accelerator = make_accelerator(recipe, self.precision, device)
        self.team = Team(self.accelerator)
        self.device = self.accelerator.device if self.team.size > 1 else device
        self.display = display if self.team.is_main else SilentDisplay()
        self.clock = Clock()
        self.memory = PeakMemory(self.device)
        self.features: KeptFeatures | None = None
        self.kept: dict[str, Any] = {}  # what the features' cache did

    def rehearse(self, folder: Path) -> dict[str, Any]:
        """Build everything and train nothing."""
        refuse_oversize(self.recipe, self.precision, self.device)
        with self.memory:
            self.build()
            self.check_features()
        self.display.note(
            f"{total_steps(self.recipe, self.data)} steps over {self.data.rows} rows; nothing was trained"
        )
        return {**self.result(folder, "dry_run"), "planned_steps": total_steps(self.recipe, self.data)}

    def perform(self, run: RunDirectory, stop: StopRequest, command: Sequence[str]) -> dict[str, Any]:
        """Train, with the run directory telling at any moment how far it is."""
        if self.team.is_main:
            self.display = RecordedDisplay(self.display, run.log)
        loop: Loop | None = None
        try:
            self.team.on_main(lambda: self._write_start(run, command))
            watchdog = Watchdog(run.folder / f"stacks-{self.team.rank}.txt", self.recipe.run.hang_minutes)
            refuse_oversize(self.recipe, self.precision, self.device)  # alike in all processes
            with self.memory:
                self.team.together(self.build)
                self.check_features()
                with watchdog.watching():
                    loop = self.make_loop(run, stop, watchdog)
                    return self._train(run, loop, stop)
        except BaseException as error:
            self._note_end(run, loop, error)
            raise

    def _write_start(self, run: RunDirectory, command: Sequence[str]) -> None:
        run.set_status("running", verb=self.verb, method=self.recipe.method, step=0)
        place = {"device": str(self.device), "precision": self.precision, "processes": self.team.size}
        run.write_start(self.recipe, command, place)

    def build(self) -> None:
        """Make model and data."""
        recipe = self.recipe
        seed_everything(recipe.train)
        self.display.phase("model")
        if recipe.model.checkpoint is None and recipe.model.base == "nano":
            self.display.note("Base: the embedded nano language model (choose another with --base)")
        self.model, self.processor = make_model(recipe, self.precision, self.device)
        self.groups = parameter_groups(self.model.roles(), recipe.train)
        if 0 < (most := largest_rank(self.model)) < recipe.tune.rank:
            self.display.note(f"tune.rank {recipe.tune.rank} says no more than {most}, the smaller side of its targets")
        self.display.phase("data")
        self.features = keep_features(recipe, self.model, self.precision, self.device, self.team, self.display)
        reading = self.processor if self.features is None else self.features.reading(self.processor)
        self.data = make_data(recipe, self.verb, self.model, reading, self.device, self.display)
        self.data.share(self.team.rank, self.team.size)
        if recipe.save.best and self.data.validation is None:
            where = recipe.where("save.best")
            raise UsageError(
                "save.best needs validation data and there is none.", where=where, fix="name data.validation"
            )
        self.display.table("components", components(self.model, self.groups))

    def check_features(self) -> None:
        """Ask the disk for the room that kept features need, once for all processes: rows are read for it."""
        if self.features is not None:
            self.team.on_main(partial(self.features.check_room, self.data, self.display))

    def make_loop(self, run: RunDirectory, stop: StopRequest, watchdog: Watchdog) -> Loop:
        """Make what trains the model, at its first step."""
        recipe, data, team = self.recipe, self.data, self.team
        wrapped: nn.Module = spread(self.model, self.groups, recipe, self.precision, team, self.device)
        if recipe.run.strategy == "fsdp":  # it replaces parameters
            self.groups = parameter_groups(self.model.roles(), recipe.train)
        seed_everything(recipe.train, rank=team.rank)  # the first step must not depend on how the model was built
        if recipe.run.trackers:
            start_trackers(self.accelerator, recipe, run.folder)
        saver = Saver(recipe, run, self.model, self.processor, team)
        drops, path = recipe.data.overlong == "drop", run.folder / "rejected.jsonl"
        ledger = Ledger(path, recipe.data.max_bad_fraction, data.rows, drops_overlong=drops, writes=team.is_main)
        if data.rejected:
            team.wait()  # all have read the file
            ledger.note(data.rejected)
            self.display.note(f"{len(data.rejected)} rows of the data cannot be used, see {path}")
        crew = Crew(self.accelerator, team, saver, ledger, self.display, stop, watchdog)
        return Loop(recipe, self.model, wrapped, data, self.groups, crew)

    def _train(self, run: RunDirectory, loop: Loop, stop: StopRequest) -> dict[str, Any]:
        resumed_from = self._resume(run, loop)
        self.display.phase("train")
        self.display.start(loop.total_steps, loop.step)
        if self.recipe.train.compile:
            self.model.compile()
        stop.deferred = True
        place = {"step": loop.step, "total_steps": loop.total_steps}
        self.team.on_main(lambda: run.set_status("running", verb=self.verb, method=self.recipe.method, **place))
        try:
            with MetricsFile(run.metrics if self.team.is_main else None) as metrics:
                loop.run(metrics)
        finally:
            self.display.end()
        loop.end_tracking()
        if self.features is not None:
            self.kept = {"features": self.features.summary(self.team, self.display)}
        self.display.phase("save")
        loop.saver.write_model(run.model)
        return self.team.on_main(lambda: self._finish(run, loop, resumed_from))

    def _finish(self, run: RunDirectory, loop: Loop, resumed_from: int | None) -> dict[str, Any]:
        result = {**self.result(run.folder, "completed", run, loop), "resumed_from": resumed_from}
        result["memory"] = foreseen(
            self.recipe, self.precision, self.data, self.processor, run.rows(), self.device, self.memory.bytes
        )
        run.set_status("completed", verb=self.verb, **{key: value for key, value in result.items() if key != "status"})
        self._report(run)
        return result

    def _resume(self, run: RunDirectory, loop: Loop) -> int | None:
        checkpoint, notes = self.team.on_main(lambda: _newest(run))
        for note in notes:
            self.display.note(note)
        if checkpoint is None:
            if notes:
                self.display.note("no checkpoint is whole: starting from the first step")
            return None
        if checkpoint.state["data"] != self.data.fingerprint:
            raise DataError(
                "The data is not what this run started with.",
                where=str(run.folder),
                fix="restore the data, give another --output, or --overwrite to start anew",
            )
        exact = loop.resume(checkpoint)
        self.team.on_main(lambda: run.keep_metrics(loop.step))
        self.display.note(f"going on after step {loop.step} of {loop.total_steps}")
        if not exact:
            seed_everything(self.recipe.train, rank=self.team.rank, step=loop.step)
            before = len(checkpoint.state["random"])
            self.display.note(f"{self.team.size} processes instead of {before}: not exact to the last bit from here on")
        return loop.step

    def _report(self, run: RunDirectory) -> None:
        """Pictures and the report are for reading: when they fail, the trained model still counts."""
        try:
            table = components(self.model, self.groups)
            write_report(run.folder, self.recipe, self.model, self.processor, self.data, table)
        except Exception as error:
            self.display.note(f"the report could not be written: {type(error).__name__}: {error}")

    def result(
        self, folder: Path, status: str, run: RunDirectory | None = None, loop: Loop | None = None
    ) -> dict[str, Any]:
        """The JSON of the verb."""
        found = result_of(
            self.recipe, folder, status, groups=self.groups, data=self.data, device=self.device,
            seconds=self.clock.seconds, run=run, loop=loop,
        )  # fmt: skip
        return {**found, **self.kept, "precision": self.precision, "processes": self.team.size}

    def _note_end(self, run: RunDirectory, loop: Loop | None, cause: BaseException) -> None:
        """Say how it ended, even where the disk is full; of several processes the first that ends says it."""
        if not has_voice():
            return
        status = "interrupted" if isinstance(cause, (Interruption, KeyboardInterrupt)) else "failed"
        error = cause.interruption() if isinstance(cause, Stopped) else cause
        if not isinstance(error, MMTuneError):
            error = MMTuneError(f"{type(error).__name__}: {error}")
        steps = {"step": loop.step, "total_steps": loop.total_steps} if loop is not None else {"step": 0}
        try:
            run.log(f"{status}: {error.message}")
            run.set_status(status, verb=self.verb, method=self.recipe.method, **steps, error=error.to_json())
        except MMTuneError as second:
            self.display.note(f"status.json could not be written: {second.message}")


def _newest(run: RunDirectory) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to go on from; what a killed process left behind is cleared away."""
    remove_partial(run.checkpoints)
    found = find_checkpoint(run.checkpoints)
    if found[0] is None:
        run.keep_metrics(0)
    return found
