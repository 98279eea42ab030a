"""Loaded first, which puts the repository root on the path, so that every test can import ``tests.tiny``."""

import os
import signal
import tempfile

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and their child processes too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Data that tests prepare on the fly must not end up in the user's cache, nor must they find anything there.
_CACHE = tempfile.TemporaryDirectory(prefix="mmtune-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# Tiny matrices are slower on several threads than on one, in child processes too; read when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def quick_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training runs without what takes longer than they do; the tests marked ``whole`` have that too."""
    if "whole" not in request.keywords:
        unplanned = {"planned_bytes": None, "measured_bytes": 0}
        monkeypatch.setattr("mmtune.report.run.write_run_report", lambda folder, **shown: None)
        monkeypatch.setattr("mmtune.train.run.foreseen", lambda *given: unplanned)
