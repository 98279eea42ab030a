"""Every outcome of a verb becomes its exit code, its message and, when asked for, its JSON object."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune.cli.console import Console, Result, clean, plain
from mmtune.core import errors
from tests.cli.conftest import ROOT, Run, fake_verb


def raising(error: BaseException) -> Any:
    """A verb's work that fails."""

    def work(console: Console) -> None:
        raise error

    return work


OUTCOMES = [
    (errors.UsageError("wrong"), 2, "usage"),
    (errors.RecipeError("wrong"), 2, "recipe"),
    (errors.DataError("wrong"), 3, "data"),
    (errors.MediaError("wrong"), 3, "media"),
    (errors.CheckpointError("wrong"), 3, "checkpoint"),
    (errors.NotPossibleError("wrong"), 4, "not_possible"),
    (errors.MissingExtraError("Sound", "audio"), 4, "missing_extra"),
    (errors.ResourceError("wrong"), 5, "resources"),
    (errors.NumericalError("wrong"), 6, "numerical"),
    (errors.VerificationError("wrong"), 7, "verification"),
    (errors.ScoreError("wrong"), 8, "min_score"),
    (errors.Interruption("wrong"), 75, "interrupted"),
    (errors.ShapeError("wrong"), 1, "internal"),
    (MemoryError(), 5, "resources"),
    (torch.OutOfMemoryError("CUDA out of memory"), 5, "resources"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), 5, "resources"),
    (OSError(errno.ENOSPC, "No space left on device", "x"), 5, "resources"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), 5, "resources"),
    (OSError(errno.EFBIG, "File too large"), 5, "resources"),
    (OSError(errno.EROFS, "Read-only file system", "x"), 5, "resources"),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 5, "resources"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), 5, "resources"),
    (FileExistsError(errno.EEXIST, "File exists", "x"), 5, "resources"),
    (OSError(errno.EIO, "Input/output error", "x"), 5, "resources"),
    (OSError(errno.ESTALE, "Stale file handle", "x"), 5, "resources"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2, "usage"),
    (OSError(errno.ELOOP, "Too many levels of symbolic links", "x"), 2, "usage"),
    (RuntimeError("I/O error: No space left on device (os error 28)"), 5, "resources"),
    (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"), 2, "usage"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 3, "data"),
    (ZeroDivisionError("division by zero"), 1, "internal"),
    (errors.MMTuneError("a fault of ours"), 1, "internal"),
]


@pytest.mark.parametrize(("error", "code", "name"), OUTCOMES, ids=[repr(case[0])[:40] for case in OUTCOMES])
def test_errors_become_exit_codes(
    mmtune: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, name: str
) -> None:
    fake_verb(monkeypatch, raising(error))
    found = mmtune("fake", "--json")
    assert (found.code, found.error["code"]) == (code, name)
    assert "Traceback" not in found.err
    assert found.error["fix"] or isinstance(error, errors.MMTuneError)
    plain_words = mmtune("fake")
    assert (plain_words.code, plain_words.out) == (code, "")
    assert found.error["message"] in plain_words.err


def test_a_crash_leaves_a_report(mmtune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_verb(monkeypatch, raising(ZeroDivisionError("division by zero")))
    found = mmtune("fake", "--json")
    report = Path(found.error["where"]).read_text()
    assert "ZeroDivisionError" in report
    assert "command: mmtune fake --json" in report
    assert "Traceback" in mmtune("fake", "-v").err


def test_messages_show_given_allowed_where_and_fix(mmtune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    error = errors.UsageError("Bad [bold]x[/bold] \x1b[31m", where="a.yaml:3", fix="write y", allowed=["y", "z"])
    fake_verb(monkeypatch, raising(error))
    shown = mmtune("fake").err
    assert shown == "Error: Bad [bold]x[/bold] \\x1b[31m\n  allowed: y, z\n  where: a.yaml:3\n  fix: write y\n"


def test_interruption_by_the_keyboard(mmtune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_verb(monkeypatch, raising(KeyboardInterrupt()))
    found = mmtune("fake")
    assert (found.code, found.out) == (130, "")
    assert found.err.startswith("Interrupted: Ended at once")
    assert mmtune("fake", "--json").error["code"] == "interrupted"


def test_stdout_holds_the_result_alone(mmtune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(console: Console) -> Result:
        print("a library talks")
        console.note("a note")
        return Result({"a": float("nan"), "path": Path("x/y"), "set": {1}}, "the result")

    fake_verb(monkeypatch, work)
    found = mmtune("fake")
    assert (found.out, found.err) == ("the result\n", "a library talks\na note\n")
    assert mmtune("fake", "--json").json == {"a": None, "path": "x/y", "set": [1]}
    assert mmtune("--json", "-q", "fake").err == "a library talks\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generat"], "Did you mean 'generate'?"),
        (["prepare_dat"], "Did you mean 'prepare-data'?"),
        (["--verson"], "Did you mean '--version'?"),
        (["generate", "--promt", "x"], "Did you mean '--prompt'?"),
        (["generate", "-image", "x"], "Did you mean '--image'?"),
        (["finetune", "--learning_rate=1"], "Did you mean '--learning-rate'?"),
        (["finetune", "--epochs", "many"], "(given: 'many')"),
        (["finetune", "--max-steps", "0"], "(given: '0')"),
        (["finetune", "--epochs"], "requires an argument"),
        (["eval"], "--benchmark"),
        (["convert", "x"], "--output"),
        (["convert"], "SOURCE"),
        (["doctor", "twice"], "unexpected extra argument"),
        (["finetune", "--tune", "ful"], "Did you mean 'full'?"),
        (["generate", "--positions", "orignal"], "Did you mean 'original'?"),
        (["quickstart", "--method", "lava"], "Did you mean 'llava'?"),
        (["eval", "--benchmark", "pop", "--data", "x"], "Did you mean 'pope'?"),
    ],
)
def test_wrong_words_are_usage_errors(mmtune: Run, arguments: list[str], words: str) -> None:
    found = mmtune("--json", *arguments)
    assert (found.code, found.error["code"]) == (2, "usage")
    assert words in found.error["message"]
    assert found.error["fix"]
    assert "Traceback" not in found.err


def test_a_reader_that_has_gone_is_no_error() -> None:
    for arguments in ("presets", "--help", "finetune --help"):
        command = f"{sys.executable} -m mmtune {arguments} | head -c 1"
        found = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert found.stderr == ""


def test_closed_streams_are_no_error() -> None:
    command = f"{sys.executable} -m mmtune presets --json <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, check=False).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout() -> None:
    command = [sys.executable, "-m", "mmtune", "presets", "--json"]
    with open("/dev/full", "w") as full:
        found = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 5
    assert "disk is full" in found.stderr
    assert "Traceback" not in found.stderr


def test_json_values() -> None:
    assert plain({1: (float("inf"), [torch.float32], {"a"})}) == {"1": [None, ["torch.float32"], ["a"]]}
    assert clean("tab\tline\nbell\x07") == "tab\tline\nbell\\x07"
