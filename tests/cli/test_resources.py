"""A full disk, no write access, an interruption: the exit code says so, and what was there before is still there."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Run

FILE_LIMIT = 16_384  # bytes, less than the tiny adapter and more than every message


@contextmanager
def small_disk(limit: int = FILE_LIMIT) -> Iterator[None]:
    """No file may grow beyond the limit; the system answers as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def train(checkpoint: Path, data: Path) -> tuple[object, ...]:
    """A finetuning of two steps."""
    return ("finetune", "--model", checkpoint, "--data", data, "--device", "cpu", "--output", "run", "--batch-size", 2)


def test_training_on_a_full_disk(mmtune: Run, train: tuple[object, ...]) -> None:
    with small_disk():
        found = mmtune(*train, "--json")
    assert (found.code, found.error["code"]) == (5, "resources"), found.err
    assert found.error["fix"]
    assert "Traceback" not in found.err
    assert not Path("run/model").exists()
    again = mmtune(*train, "--json")  # with space again, the same command does it
    assert (again.code, again.json["status"]) == (0, "completed"), again.err


def test_data_on_a_full_disk(mmtune: Run, data: Path) -> None:
    with small_disk(256):
        found = mmtune("prepare-data", data, "--output", "out", "--json")
    assert (found.code, found.error["code"]) == (5, "resources"), found.err
    assert not Path("out/manifest.json").exists()
    assert mmtune("prepare-data", data, "--output", "out", "--json").code == 0


def test_answers_on_a_full_disk(mmtune: Run, checkpoint: Path, tmp_path: Path) -> None:
    batch = tmp_path / "b.jsonl"
    batch.write_text("\n".join(json.dumps({"id": str(index), "prompt": "Hi " * 20}) for index in range(60)))
    arguments = ("--model", checkpoint, "--batch", batch, "--output", "a.jsonl", "--max-new-tokens", 1, "--json")
    Path("a.jsonl").write_text("older answers")
    with small_disk():
        found = mmtune("generate", *arguments)
    assert (found.code, found.error["code"]) == (5, "resources"), found.err
    assert Path("a.jsonl").read_text() == "older answers"


@pytest.mark.parametrize("place", ["/proc/mmtune", "file/run"])
@pytest.mark.parametrize("verb", ["finetune", "prepare-data", "convert", "eval", "quickstart", "generate"])
def test_no_write_access(mmtune: Run, checkpoint: Path, data: Path, verb: str, place: str) -> None:
    if place.startswith("/proc") and not os.path.isdir("/proc/self"):
        pytest.skip("needs /proc")
    Path("file").write_text("x")
    Path("b.jsonl").write_text('{"prompt": "x"}\n')
    golden = Path(__file__).parents[1] / "golden" / "llava" / "a" / "checkpoint"
    arguments: dict[str, tuple[object, ...]] = {
        "finetune": ("--model", checkpoint, "--data", data, "--device", "cpu"),
        "prepare-data": (data,),
        "convert": (golden,),
        "eval": ("--model", checkpoint, "--benchmark", "qa", "--data", data, "--limit", 1),
        "quickstart": ("--method", "llava"),
        "generate": ("--model", checkpoint, "--batch", "b.jsonl"),
    }
    began = time.monotonic()
    found = mmtune(verb, *arguments[verb], "--output", place, "--json")
    assert (found.code, found.error["code"]) == (5, "resources"), found.err
    assert found.error["where"]
    assert found.error["fix"]
    assert "Traceback" not in found.err
    assert time.monotonic() - began < 60, "noticed only after the work"


@pytest.mark.parametrize(("signal_name", "output", "code"), [("SIGINT", 1, 75), ("SIGTERM", 1, 75), ("SIGINT", 0, 75)])
def test_an_interrupted_evaluation(
    mmtune: Run, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch, signal_name: str, output: int, code: int
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), getattr(signal, signal_name))
        time.sleep(5)

    monkeypatch.setattr("mmtune.evaluation.run.evaluate", stop)
    where = ("--output", "scores") if output else ()
    found = mmtune("eval", "--model", checkpoint, "--benchmark", "qa", "--data", data, *where)
    assert found.code == code
    assert "Traceback" not in found.err


@contextmanager
def interrupting(rows: int, *, twice: bool = False) -> Iterator[None]:
    """Press Ctrl-C as soon as so many steps are done."""

    def press() -> None:
        metrics = Path("run/metrics.jsonl")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if metrics.exists() and metrics.read_text().count("\n") >= rows:
                os.kill(os.getpid(), signal.SIGINT)
                if twice:
                    time.sleep(1)
                    os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.001)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    yield


def test_an_interrupted_run_goes_on(mmtune: Run, train: tuple[object, ...]) -> None:
    command = (*train, "--epochs", 60, "--json")
    with interrupting(3):
        found = mmtune(*command)
    assert (found.code, found.error["code"]) == (75, "interrupted"), found.err
    assert found.json["status"] == "interrupted"
    assert 3 <= found.json["steps"] < 120
    again = mmtune(*command)
    assert (again.code, again.json["status"], again.json["steps"]) == (0, "completed", 120), again.err
    assert again.json["resumed_from"] == found.json["steps"]
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 121))
    assert mmtune(*command).error["exit"] == 2  # finished: refused without --overwrite


def test_a_second_interruption_does_not_wait(mmtune: Run, train: tuple[object, ...]) -> None:
    def save_slowly(*arguments: object, **options: object) -> None:
        time.sleep(20)

    with interrupting(1, twice=True), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmtune.train.saver.Saver.checkpoint", save_slowly)
        found = mmtune(*train, "--epochs", 60)
    assert found.code == 130, found.err


def test_an_interruption_before_the_first_step(
    mmtune: Run, train: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("mmtune.train.recipe.resolve", stop)
    assert mmtune(*train).code == 75
