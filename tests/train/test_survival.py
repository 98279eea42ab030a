"""Nothing stops a run for good: not ``kill -9``, not another number of processes, not the end of one of them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mmtune.methods import METHODS
from mmtune.train.recipe import Recipe, dump
from mmtune.train.run import train
from tests.train.processes import ROOT, start_together, train_together
from tests.train.test_processes import NEEDS_DEEPSPEED

Make = Callable[..., Recipe]


def hashes(model: Path) -> dict[str, str]:
    found = sorted(model.rglob("*.safetensors"))
    return {str(path.relative_to(model)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.names())
def test_ten_kills_lose_nothing(method: str, recipe: Make, tmp_path: Path) -> None:
    wanted = recipe(
        method, tune__kind="lora", train__max_steps=60, train__epochs=40, save__every_steps=2, train__accumulation=2
    )
    (tmp_path / "recipe.yaml").write_text(dump(wanted))
    train(wanted, output=tmp_path / "whole")
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.killed", str(tmp_path / "recipe.yaml"), str(tmp_path / "run"), "10"],
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    killed = json.loads((tmp_path / "killed.json").read_text())
    assert killed["while saving"] >= 3
    assert killed["between"] >= 7
    assert killed["resumed_from"] > 0
    assert hashes(tmp_path / "run/model") == hashes(tmp_path / "whole/model")


def command(recipe: Recipe, folder: Path, *more: str) -> list[str]:
    (folder / "recipe.yaml").write_text(dump(recipe))
    given = [sys.executable, "-m", "mmtune", "finetune", str(folder / "recipe.yaml"), "--output", str(folder / "run")]
    return [*given, "--num-processes", "2", "--json", *more]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_command_in_two_processes_stops_and_goes_on(recipe: Make, tmp_path: Path) -> None:
    wanted = recipe("vlora", train__max_steps=200, train__epochs=100, save__every_steps=None)
    given = command(wanted, tmp_path)
    process = subprocess.Popen(given, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics = tmp_path / "run/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err.decode()[-3000:]
    assert json.loads(out)["error"]["exit"] == 75
    saved = [path.name for path in (tmp_path / "run/checkpoints").iterdir()]
    assert len(saved) == 1
    done = subprocess.run(given, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert (result["status"], result["steps"], result["processes"]) == ("completed", 200, 2)
    assert result["resumed_from"] == int(saved[0].removeprefix("step-"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    ["ddp", "fsdp", pytest.param("zero2", marks=NEEDS_DEEPSPEED), pytest.param("zero3", marks=NEEDS_DEEPSPEED)],
)
def test_two_processes_that_are_killed_lose_nothing(strategy: str, recipe: Make, tmp_path: Path) -> None:
    """Launcher and both processes by ``kill -9``, twice; the run goes on from a checkpoint that both had written."""
    wanted = recipe(
        "llava", tune__kind="lora", train__max_steps=24, train__epochs=40, save__every_steps=2,
        train__weight_decay=0.1, run__strategy=strategy,
    )  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train_together({whole: wanted})[whole]["status"] == "completed"
    for steps in (7, 15):
        _, process = start_together({killed: wanted})
        kill_after(process, killed / "metrics.jsonl", steps)
    result = train_together({killed: wanted})[killed]
    assert result["status"] == "completed", result
    assert result["resumed_from"] >= 12
    assert hashes(killed / "model") == hashes(whole / "model")


def kill_after(process: subprocess.Popen[str], metrics: Path, steps: int) -> None:
    """Kill a process and all that it started once so many steps are told."""
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= steps):
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.01)
    everyone = psutil.Process(process.pid).children(recursive=True)
    for one in (process, *everyone):
        one.kill()
    psutil.wait_procs(everyone, timeout=60)
    process.communicate(timeout=60)


@pytest.mark.slow
def test_an_error_in_two_processes_is_told_once(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[]")
    wanted = recipe(data__train=[{"path": str(tmp_path / "bad.json")}])
    given = command(wanted, tmp_path)
    done = subprocess.run(given, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 3, done.stderr[-3000:]
    assert json.loads(done.stdout)["error"]["exit"] == 3
    assert done.stderr.count("Error:") == 1
    assert "Traceback" not in done.stderr
