"""Run directories: names, refusals, locks."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import mmtune.train.lock as lock_module
from mmtune.core.errors import ResourceError, UsageError
from mmtune.train.lock import RunLock
from mmtune.train.recipe import resolve
from mmtune.train.run_directory import RunDirectory, begins_anew, choose_folder, clear, newest_finished_run, open_run

RECIPE = resolve("finetune", overrides={"method": "vlora"})


def finish(folder: Path, status: str = "completed") -> RunDirectory:
    folder.mkdir(parents=True)
    run = RunDirectory(folder)
    run.write_start(RECIPE, ["mmtune", "finetune", "a b"], {})
    run.set_status(status, verb="finetune")
    return run


def test_the_default_name_and_taking_up_an_unfinished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = choose_folder(RECIPE, "finetune", None)
    assert chosen.parent == Path("runs")
    assert "_vlora_" in chosen.name
    older = Path("runs") / f"20200101_{chosen.name.partition('_')[2]}"
    finish(older, "interrupted")
    assert choose_folder(RECIPE, "finetune", None) == older
    assert choose_folder(RECIPE, "pretrain", None) != older
    RunDirectory(older).set_status("completed")
    assert choose_folder(RECIPE, "finetune", None) == chosen
    assert choose_folder(RECIPE, "finetune", Path("x")) == Path("x")


def test_a_finished_run_and_another_recipe_are_refused(tmp_path: Path) -> None:
    finish(tmp_path / "run")
    with pytest.raises(UsageError, match="finished") as caught:
        open_run(tmp_path / "run", RECIPE, "finetune", overwrite=False)
    assert "--overwrite" in str(caught.value.fix)
    open_run(tmp_path / "run", RECIPE, "finetune", overwrite=True)
    other = resolve("finetune", overrides={"method": "vlora", "train.seed": 5})
    with pytest.raises(UsageError, match=r"train.seed: 0 -> 5"):
        open_run(tmp_path / "run", other, "finetune", overwrite=False)
    with pytest.raises(UsageError, match="verb: finetune -> pretrain"):
        open_run(tmp_path / "run", RECIPE, "pretrain", overwrite=False)


def test_foreign_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="no run"):
            open_run(tmp_path, RECIPE, "finetune", overwrite=overwrite)
    with pytest.raises(UsageError, match="file stands"):
        open_run(tmp_path / "precious.txt", RECIPE, "finetune", overwrite=False)


def test_a_run_that_was_killed_before_it_had_begun_is_taken_up(tmp_path: Path) -> None:
    early, later = RunDirectory(tmp_path / "early"), RunDirectory(tmp_path / "later")
    early.folder.mkdir()
    for name in (".lock", ".status.json.partial"):
        (early.folder / name).write_text("")
    later.folder.mkdir()
    later.set_status("running", verb="finetune")
    for run in (early, later):
        open_run(run.folder, RECIPE, "finetune", overwrite=False)
    (later.folder / "checkpoints" / "step-000001").mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot be read"):
        open_run(later.folder, RECIPE, "finetune", overwrite=False)


def test_what_failed_at_once_gives_way_to_a_corrected_command(tmp_path: Path) -> None:
    """Nothing is lost: there was no step. After one, the same folder means the same run."""
    run = open_run(tmp_path / "run", RECIPE, "finetune", overwrite=False)
    run.write_start(RECIPE, ["mmtune"], {})
    corrected = resolve("finetune", overrides={"method": "vlora", "train.seed": 5})
    run.set_status("failed", verb="finetune", step=0)
    open_run(run.folder, corrected, "finetune", overwrite=False)
    for status, step in (("failed", 1), ("running", 0), ("interrupted", 0)):
        run.set_status(status, verb="finetune", step=step)
        with pytest.raises(UsageError, match=r"train.seed: 0 -> 5"):
            open_run(run.folder, corrected, "finetune", overwrite=False)


@pytest.mark.parametrize(
    ("status", "anew"), [("running", False), ("interrupted", False), ("failed", True), ("completed", True)]
)
def test_overwrite_does_not_empty_what_the_same_command_has_to_go_on_with(
    tmp_path: Path, status: str, anew: bool
) -> None:
    command = ["mmtune", "finetune", "a b"]
    finish(tmp_path / "run", status)
    assert begins_anew(tmp_path / "run", RECIPE, "finetune", command) is anew
    assert begins_anew(tmp_path / "run", RECIPE, "finetune", [*command, "--overwrite"])
    other = resolve("finetune", overrides={"method": "vlora", "train.seed": 5})
    assert begins_anew(tmp_path / "run", other, "finetune", command)
    assert begins_anew(tmp_path / "none", RECIPE, "finetune", command)


def test_a_full_disk_is_a_reason_to_go_on(tmp_path: Path) -> None:
    finish(tmp_path / "run").set_status("failed", error=ResourceError("The disk is full.").to_json())
    assert not begins_anew(tmp_path / "run", RECIPE, "finetune", ["mmtune", "finetune", "a b"])


def test_a_name_that_is_no_text_can_be_written_down(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_start(RECIPE, ["mmtune", "--output", "caf\udce9"], {})
    run.log("caf\udce9")
    assert "caf\\udce9" in (tmp_path / "command.txt").read_text()
    run.set_status("interrupted", verb="finetune")
    assert not begins_anew(tmp_path, RECIPE, "finetune", ["mmtune", "--output", "caf\udce9"])
    assert "caf\\udce9" in (tmp_path / "log.txt").read_text()


def test_clearing_keeps_the_lock(tmp_path: Path) -> None:
    run = finish(tmp_path / "run")
    with RunLock(run.folder):
        clear(run.folder)
        assert [entry.name for entry in run.folder.iterdir()] == [".lock"]
    assert not list(run.folder.iterdir())


def test_a_living_process_holds_its_lock(tmp_path: Path) -> None:
    hold = f"with RunLock(Path({str(tmp_path)!r})):\n    print('held', flush=True); time.sleep(60)"
    code = f"import time; from pathlib import Path; from mmtune.train.lock import RunLock\n{hold}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UsageError, match=f"in use by process {process.pid}"), RunLock(tmp_path):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with RunLock(tmp_path):
        pass


def lock_text(**changes: object) -> str:
    """What a lock's file says: of a living process of this machine, but for the changes."""
    return json.dumps({"pid": 1, "host": socket.gethostname(), "born": lock_module._born(1), **changes})


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "x", lock_text(), lock_text(host="a-node-that-was-taken-away"), lock_text(pid=os.getpid())],
    ids=["empty", "nobody", "list", "text", "alive", "elsewhere", "again"],
)
def test_what_no_process_holds_is_ignored_whatever_the_file_says(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_a_process_does_not_take_its_own_lock_twice(tmp_path: Path) -> None:
    again = pytest.raises(UsageError, match=f"in use by process {os.getpid()}")
    with RunLock(tmp_path), again, RunLock(tmp_path / "x" / ".."):
        pass
    with RunLock(tmp_path):
        pass


@pytest.mark.skipif(not Path("/proc/1/stat").exists(), reason="needs /proc")
def test_on_a_disk_without_locks_the_process_is_asked_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(*given: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock_module.fcntl, "lockf", lockf)
    for text in ("", lock_text(born="1"), lock_text(host="elsewhere"), lock_text(pid=2**30)):
        (tmp_path / ".lock").write_text(text)
        with RunLock(tmp_path):
            pass
    (tmp_path / ".lock").write_text(lock_text())
    with pytest.raises(UsageError, match="in use by process 1 on"), RunLock(tmp_path):
        pass


def test_a_full_disk_is_told_and_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*given: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(lock_module.os, "write", write)
        with pytest.raises(ResourceError, match="disk is full"), RunLock(tmp_path):
            pass
    code = (
        f"from pathlib import Path; from mmtune.train.lock import RunLock\nwith RunLock(Path({str(tmp_path)!r})): pass"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_newest_finished_run(tmp_path: Path) -> None:
    assert newest_finished_run(tmp_path) is None
    for number, (name, status) in enumerate([("a", "completed"), ("b", "completed"), ("c", "failed")]):
        run = finish(tmp_path / name, status)
        run.model.mkdir()
        (run.model / "config.json").write_text("{}")
        os.utime(run.folder / "status.json", (number, number))
    assert newest_finished_run(tmp_path) == tmp_path / "b"


def test_metrics_of_lost_steps_are_dropped(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    run.keep_metrics(2)
    assert [row["step"] for row in run.rows()] == [1, 2]
