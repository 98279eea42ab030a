"""Whole runs on tiny models: results, files, resuming bit by bit, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import mmtune.model.build as build
from mmtune.core.errors import (
    CheckpointError,
    DataError,
    Interruption,
    MissingExtraError,
    NotPossibleError,
    NumericalError,
    RecipeError,
    ResourceError,
    UsageError,
)
from mmtune.model.modeling import MMTuneModel
from mmtune.train.display import LoggingDisplay
from mmtune.train.loop import Loop
from mmtune.train.recipe import Recipe, resolve
from mmtune.train.run import train
from mmtune.train.state import list_checkpoints
from tests.train.conftest import write_rows

Make = Callable[..., Recipe]
KEYS = {
    "run", "model", "method", "status", "steps", "samples", "tokens", "loss", "trainable_parameters", "seconds",
    "samples_per_second", "tokens_per_second", "peak_memory_bytes", "resumed_from",
}  # fmt: skip


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


class Stop(LoggingDisplay):
    """Sends this process a signal after a step."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        super().__init__()
        self._step, self._number = step, number

    def step(self, row: Mapping[str, Any]) -> None:
        if row["step"] == self._step:
            os.kill(os.getpid(), self._number)


@pytest.mark.whole
def test_the_report_is_written(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe(train__max_steps=1), output=tmp_path)
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "plots" / "loss.png").is_file()
    monkeypatch.setattr("mmtune.report.run.write_run_report", lambda folder, **shown: 1 / 0)
    assert train(recipe(train__max_steps=1), output=tmp_path, overwrite=True)["status"] == "completed"
    assert "ZeroDivisionError" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("method", ["llava", "vlora", "lavin"])
def test_a_run_leaves_what_the_contract_says(method: str, recipe: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(recipe(method), output=run, command=["mmtune", "finetune"])
    assert set(result) >= KEYS
    assert (result["status"], result["steps"], result["samples"], result["resumed_from"]) == ("completed", 8, 24, None)
    found = rows(run)
    assert [row["step"] for row in found] == list(range(1, 9))
    assert result["loss"] == {"first": found[0]["loss"], "last": found[-1]["loss"]}
    assert result["tokens"] == sum(row["tokens"] for row in found)
    for name in (
        "recipe.yaml",
        "command.txt",
        "env.json",
        "status.json",
        "log.txt",
        "plots",
        "model/adapter.safetensors",
    ):
        assert (run / name).exists(), name
    assert [folder.name for folder in list_checkpoints(run / "checkpoints")] == ["step-000008", "step-000006"]
    assert status(run)["status"] == "completed"
    assert not (run / ".lock").exists()
    model, processor = build.load(run / "model", device="cpu")
    assert processor.template == "vicuna_v1"
    assert sum(p.numel() for p in model.method.parameters()) == result["trainable_parameters"]
    again = resolve("finetune", file=run / "recipe.yaml")
    train(again, output=tmp_path / "again")
    assert sha(tmp_path / "again/model/adapter.safetensors") == sha(run / "model/adapter.safetensors")


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = Loop._one_step

    def one_step(self: Loop, steps: Any) -> Any:
        if self.step == step:
            raise RuntimeError("power cut")
        return original(self, steps)

    monkeypatch.setattr(Loop, "_one_step", one_step)


@pytest.mark.parametrize(
    "changes", [{}, {"tune__kind": "lora", "train__accumulation": 2}, {"method": "vlora"}, {"method": "lavin"}]
)
def test_a_broken_run_goes_on_bit_by_bit(
    changes: dict[str, Any], recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(**changes, save__every_steps=2)
    train(wanted, output=tmp_path / "whole")
    with monkeypatch.context() as patch:
        crash_at(patch, 5)
        with pytest.raises(RuntimeError, match="power cut"):
            train(wanted, output=tmp_path / "broken")
    assert status(tmp_path / "broken")["status"] == "failed"
    result = train(wanted, output=tmp_path / "broken")
    assert result["resumed_from"] == 4
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for path in sorted(whole.glob("model/**/*.safetensors")):
        assert sha(path) == sha(broken / path.relative_to(whole))
    assert [row["loss"] for row in rows(whole)] == [row["loss"] for row in rows(broken)]
    assert result["samples"] == status(whole)["samples"]


def test_a_damaged_checkpoint_is_passed_over(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        crash_at(patch, 7)
        with pytest.raises(RuntimeError):
            train(recipe(), output=tmp_path)
    (tmp_path / "checkpoints/step-000006/optimizer.safetensors").write_bytes(b"")
    assert train(recipe(), output=tmp_path)["resumed_from"] == 3
    assert "step-000006 is damaged" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_same_call_goes_on(number: int, recipe: Make, tmp_path: Path) -> None:
    wanted = recipe(save__every_steps=None)
    with pytest.raises(Interruption) as caught:
        train(wanted, output=tmp_path / "run", display=Stop(4, number))
    assert caught.value.exit_code == 75
    assert status(tmp_path / "run")["status"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    result = train(wanted, output=tmp_path / "run")
    assert (result["resumed_from"], result["status"]) == (4, "completed")
    train(wanted, output=tmp_path / "whole")
    assert sha(tmp_path / "run/model/adapter.safetensors") == sha(tmp_path / "whole/model/adapter.safetensors")


def test_refusals(recipe: Make, tmp_path: Path) -> None:
    train(recipe(train__max_steps=1), output=tmp_path / "run")
    with pytest.raises(UsageError, match="finished"):
        train(recipe(train__max_steps=1), output=tmp_path / "run")
    with pytest.raises(UsageError, match=r"train\.max_steps: 1 -> 2"):
        train(recipe(train__max_steps=2), output=tmp_path / "run")
    assert train(recipe(train__max_steps=2), output=tmp_path / "run", overwrite=True)["steps"] == 2
    for changes, kind in [
        ({"run__num_processes": 2}, NotPossibleError),
        ({"train__tokens_per_batch": 5}, RecipeError),
        ({"train__tokens_per_batch": 500, "train__grouping": "modality"}, RecipeError),
        ({"train__precision": "fp16"}, NotPossibleError),
        ({"tune__kind": "qlora"}, MissingExtraError),
        ({"run__device": "cuda"}, ResourceError),
        ({"run__device": "xyz"}, UsageError),
        ({"run__trackers": ["wandbb"]}, UsageError),
        ({"train__roles": ["projectr"]}, RecipeError),
        ({"train__learning_rate": {"default": 1.0, "projectr": 1.0}}, RecipeError),
        ({"model__settings": {"projektor": "linear"}}, RecipeError),
        ({"data__template": "vicuna"}, UsageError),
        ({"save__best": True}, UsageError),
        ({"model__encoders": {"sound": {}}}, UsageError),
    ]:
        with pytest.raises(kind):
            train(recipe(**changes), output=tmp_path / "other", overwrite=True)


def test_a_dry_run_builds_and_writes_nothing(recipe: Make, tmp_path: Path) -> None:
    result = train(recipe("vlora"), output=tmp_path / "run", dry_run=True)
    assert set(result) >= KEYS
    assert (result["status"], result["steps"], result["planned_steps"]) == ("dry_run", 0, 8)
    assert result["trainable_parameters"] > 0
    assert not (tmp_path / "run").exists()


def test_validation_keeps_the_best_and_changes_no_weight(recipe: Make, tmp_path: Path) -> None:
    held_out = write_rows(tmp_path, "val.json", count=4)
    named = recipe(tune__kind="lora", data__validation=[str(held_out)])
    result = train(named, output=tmp_path / "with")
    train(recipe(tune__kind="lora"), output=tmp_path / "without")
    found = [row for row in rows(tmp_path / "with") if "validation_loss" in row]
    assert [row["step"] for row in found] == [3, 6, 8]
    best = min(found, key=lambda row: row["validation_loss"])
    assert result["best"]["step"] == best["step"]
    build.load(tmp_path / "with/checkpoints/best", device="cpu")
    assert sha(tmp_path / "with/model/adapter.safetensors") == sha(tmp_path / "without/model/adapter.safetensors")


class StopInValidation(LoggingDisplay):
    """Sends this process a signal when the validation after a step begins."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def note(self, text: str) -> None:
        if text == f"validating after step {self._step}":
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("display", [Stop(3), StopInValidation(3), Stop(8), StopInValidation(8)])
def test_a_stop_does_not_wait_for_validation_which_is_made_up_for(
    display: LoggingDisplay, recipe: Make, tmp_path: Path
) -> None:
    wanted = recipe(data__validation=[str(write_rows(tmp_path, "val.json", count=4))])
    whole = train(wanted, output=tmp_path / "whole")
    with pytest.raises(Interruption):
        train(wanted, output=tmp_path / "run", display=display)
    result = train(wanted, output=tmp_path / "run")
    found = [row for row in rows(tmp_path / "run") if "validation_loss" in row]
    assert found == [row for row in rows(tmp_path / "whole") if "validation_loss" in row]
    assert result["resumed_from"] in (3, 8)
    assert result["best"]["step"] == whole["best"]["step"]
    assert sha(tmp_path / "run/model/adapter.safetensors") == sha(tmp_path / "whole/model/adapter.safetensors")


def test_accumulation_equals_one_large_batch(recipe: Make, tmp_path: Path) -> None:
    large = train(recipe(train__batch_size=6, train__max_steps=3), output=tmp_path / "large")
    small = train(recipe(train__batch_size=2, train__accumulation=3, train__max_steps=3), output=tmp_path / "small")
    for one, other in zip(rows(tmp_path / "large"), rows(tmp_path / "small"), strict=True):
        assert (one["targets"], one["samples"]) == (other["targets"], other["samples"])
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    assert large["samples"] == small["samples"] == 18


def test_pretrain_then_finetune(recipe: Make, tmp_path: Path) -> None:
    first = train(recipe("vlora"), verb="pretrain", output=tmp_path / "first")
    second = resolve(
        "finetune",
        overrides={"model.checkpoint": first["model"], "data.train": [str(write_rows(tmp_path))], "run.device": "cpu"},
        sets=["train.max_steps=2", "train.batch_size=2", "train.learning_rate=0.001"],
    )
    assert (second.method, second.model.settings["rank"]) == ("vlora", 4)
    result = train(second, output=tmp_path / "second")
    assert result["loss"]["first"] < rows(tmp_path / "first")[0]["loss"]
    other = second.model_copy(update={"method": "llava", "model": second.model.model_copy(update={"settings": {}})})
    with pytest.raises(CheckpointError, match="method 'vlora'"):
        train(other, output=tmp_path / "third")


def test_a_lora_goes_on_from_its_checkpoint(recipe: Make, tmp_path: Path) -> None:
    first = train(recipe(tune__kind="lora", tune__rank=3, train__max_steps=3), output=tmp_path / "first")
    overrides = {"model.checkpoint": first["model"], "data.train": [str(write_rows(tmp_path))], "tune.kind": "lora"}
    sets = ["train.max_steps=6", "train.batch_size=2", "train.learning_rate=0.001", "run.device=cpu"]
    second = resolve("finetune", overrides=overrides, sets=sets)
    assert second.tune.rank == 3
    result = train(second, output=tmp_path / "second")
    assert result["trainable_parameters"] == first["trainable_parameters"]
    build.load(result["model"], device="cpu")
    with pytest.raises(CheckpointError, match="rank 3"):
        train(resolve("finetune", overrides=overrides, sets=[*sets, "tune.rank=5"]), output=tmp_path / "third")


def test_bad_rows_stop_a_run_unless_there_is_a_budget(recipe: Make, tmp_path: Path) -> None:
    data = write_rows(tmp_path, count=8)
    (tmp_path / "2.png").write_bytes(b"no picture")
    source = [{"path": str(data)}]
    for _ in range(2):
        with pytest.raises(DataError):
            train(recipe(data__train=source, train__batch_size=1), output=tmp_path / "strict")
    lenient = recipe(data__train=source, train__batch_size=1, data__max_bad_fraction=0.2)
    result = train(lenient, output=tmp_path / "lenient")
    assert (result["rejected"], result["samples"]) == (1, 7)
    ledger = [json.loads(line) for line in (tmp_path / "lenient/rejected.jsonl").read_text().splitlines()]
    assert [row["id"] for row in ledger] == ["row-2"]


def test_non_finite_numbers_stop_with_the_rows(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MMTuneModel._loss
    monkeypatch.setattr(MMTuneModel, "_loss", lambda self, *given: original(self, *given) * float("nan"))
    with pytest.raises(NumericalError, match="loss of step 1 is nan") as caught:
        train(recipe(), output=tmp_path)
    assert "row-" in str(caught.value.where)
    assert status(tmp_path)["error"]["exit"] == 6


def test_out_of_memory_names_rows_and_the_setting(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: MMTuneModel, **inputs: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(MMTuneModel, "forward", fail)
    with pytest.raises(ResourceError, match="3 rows of up to") as caught:
        train(recipe(), output=tmp_path)
    assert "train.batch_size=1" in str(caught.value.fix)
    assert "row-" in str(caught.value.where)


def test_weights_that_do_not_move_are_an_error(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="did not move"):
        train(recipe(train__learning_rate=1e-30), output=tmp_path)
    with pytest.raises(NumericalError, match="'default' is 0"):  # known before the first step, however few there are
        train(recipe(train__learning_rate=0.0, train__max_steps=1), output=tmp_path / "zero")


def test_a_run_that_saw_no_row_is_an_error(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="Nothing was trained on") as caught:
        train(recipe(data__overlong="drop", data__max_length=4, train__max_steps=2), output=tmp_path)
    assert caught.value.where == str(tmp_path / "rejected.jsonl")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"train__precision": "bf16"},
        {"train__gradient_checkpointing": True, "tune__kind": "lora"},
        {"tune__kind": "full", "train__max_grad_norm": None, "train__weight_decay": 0.1},
        {"train__roles": ["method", "encoder"], "train__schedule": "constant"},
        {"data__workers": 2, "train__schedule": "linear"},
        {"train__deterministic": True, "data__max_length": None},
    ],
)
def test_other_settings_train_too(changes: dict[str, Any], recipe: Make, tmp_path: Path) -> None:
    result = train(recipe("vlora", **changes, train__max_steps=6), output=tmp_path)
    torch.use_deterministic_algorithms(False)
    assert result["loss"]["last"] < result["loss"]["first"]
    build.load(tmp_path / "model", device="cpu")


def test_checkpointing_computes_the_same(recipe: Make, tmp_path: Path) -> None:
    train(recipe("vlora", train__max_steps=4), output=tmp_path / "a")
    train(recipe("vlora", train__max_steps=4, train__gradient_checkpointing=True), output=tmp_path / "b")
    for one, other in zip(rows(tmp_path / "a"), rows(tmp_path / "b"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


KILLED = """
import sys
import torch
from mmtune.train.recipe import resolve
from mmtune.train.run import train
torch.set_num_threads(1)
train(resolve("finetune", file=sys.argv[1]), output=__import__("pathlib").Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", [3, 11, 22])
def test_kill_nine_loses_nothing(moment: int, recipe: Make, tmp_path: Path) -> None:
    from mmtune.train.recipe import dump

    wanted = recipe("vlora", train__max_steps=30, save__every_steps=4)
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(wanted))
    train(wanted, output=tmp_path / "whole")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(file), str(tmp_path / "run")])
    metrics = tmp_path / "run/metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= moment:
            process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    result = train(wanted, output=tmp_path / "run")
    assert result["resumed_from"] is None or result["resumed_from"] >= 4 * (moment // 4) - 4
    assert sha(tmp_path / "run/model/adapter.safetensors") == sha(tmp_path / "whole/model/adapter.safetensors")
    assert [row["loss"] for row in rows(tmp_path / "run")] == [row["loss"] for row in rows(tmp_path / "whole")]
