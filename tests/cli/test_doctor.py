"""`mmtune doctor`: OK, WARN or FAIL, what was found, and the fix."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from mmtune.cli import checks
from mmtune.nano.build import hashes
from tests.cli.conftest import ROOT, Run


def test_the_report(mmtune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "check_assets", lambda: [checks.Finding("embedded model", "OK", "there")])
    found = mmtune("doctor", "--offline", "--json")
    names = {check["name"] for check in found.json["checks"]}
    assert {
        "mmtune",
        "python",
        "torch",
        "cpu",
        "disk",
        "data cache",
        "hub cache",
        "extra audio",
        "embedded model",
    } <= names
    assert all(check["status"] in ("OK", "WARN", "FAIL") for check in found.json["checks"])
    assert all(check["fix"] for check in found.json["checks"] if check["status"] != "OK")
    assert found.code == 0
    assert "python" in mmtune("doctor", "--offline").out


def test_a_failure_is_exit_code_5(mmtune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = checks.Finding("embedded model", "FAIL", "gone", "install again")
    monkeypatch.setattr(checks, "check_assets", lambda: [broken])
    found = mmtune("doctor", "--offline", "--json")
    assert (found.code, found.json["status"]) == (5, "FAIL")
    assert (found.error["where"], found.error["fix"]) == ("embedded model", "install again")
    assert "-> install again" in mmtune("doctor", "--offline").out


def test_assets_are_checked_against_their_hashes(tmp_path: Path) -> None:
    assert checks.check_assets(tmp_path)[0].status == "FAIL"
    for name in checks.ASSET_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert checks.check_assets(tmp_path)[0].status == "OK"
    hashes.main([str(tmp_path)])
    assert "hashes as published" in checks.check_assets(tmp_path)[0].found
    (tmp_path / "llm/config.json").write_text("changed")
    assert checks.check_assets(tmp_path)[0].status == "FAIL"


def test_the_hub_out_of_reach_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert [finding.status for finding in checks.check_hub()] == ["WARN"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in checks.check_hub()[0].found


def test_every_extra_is_looked_for() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"test", "examples", "dev"}
    assert {finding.name.removeprefix("extra ") for finding in checks.check_extras()} == extras


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert checks.check_cache(tmp_path / "file" / "cache")[0].status == "WARN"
    assert checks.check_disk(tmp_path)[0].status in ("OK", "WARN")
    assert checks.check_disk(tmp_path / "gone")[0].status == "FAIL"


def test_the_list_of_hashes_is_that_of_the_embedded_files() -> None:
    listed = hashes.ASSETS / hashes.LIST
    if not listed.exists():
        pytest.skip("the embedded model is not built")
    assert json.loads(listed.read_text()) == hashes.hashes_of(hashes.ASSETS)
