"""``mmtune compare`` from training and evaluation to the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_runs_are_compared_from_the_command_line(
    mmtune: Run, checkpoint: Path, data: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmtune.report.compare.speed.SECONDS", 0.0)
    monkeypatch.setattr("mmtune.report.compare.speed.ROUNDS", 1)
    for name, seed in (("one", 0), ("two", 1)):
        options = ("--data", data, "--batch-size", 2, "--epochs", 2, "--device", "cpu", "--output", f"runs/{name}")
        trained = mmtune("finetune", "--model", checkpoint, *options, "--seed", seed, "--json")
        assert trained.code == 0, trained.err
        scored = mmtune("eval", "--model", f"runs/{name}", "--benchmark", "qa", "--data", data, "--json")
        assert scored.json["contract"]["rows"] == 3
    found = mmtune("compare", "runs/one", "runs/two", "--image", picture, "--html", "page.html", "--json")
    assert found.code == 0, found.err
    result = found.json
    assert list(result["runs"]) == ["one", "two"]
    assert "seed" in [entry["what"] for entry in result["budget"]["differences"]]
    assert result["ranked"]
    assert result["measurement"]["picture"] == str(picture)
    assert result["measurement"]["device"] in ("cpu", "cuda", "mps")
    assert (Path(result["html"]).is_file(), Path(result["markdown"]).name) == (True, "page.md")
    shown = mmtune("compare", "runs/one", "runs/two")
    assert "Not under a matched budget" in shown.err + shown.out
    assert "time to first token" in shown.err + shown.out


def test_only_finished_runs_are_compared(mmtune: Run) -> None:
    for name, status in (("a", "interrupted"), ("b", "completed")):
        Path(name).mkdir()
        Path(name, "status.json").write_text(json.dumps({"status": status}))
        Path(name, "command.txt").write_text("mmtune finetune --output a\n")
    assert mmtune("compare", "a", "b", "--json").error["exit"] == 3
    assert "mmtune finetune --output a" in mmtune("compare", "a", "b", "--json").error["fix"]
    assert mmtune("compare", "b", "nothing", "--json").error["exit"] == 3
    assert mmtune("compare", "a", "--json").error["exit"] == 2
    assert mmtune("compare", "--json").error["exit"] == 2


def test_evaluations_of_given_answers_are_compared(mmtune: Run, data: Path, tmp_path: Path) -> None:
    rows = json.loads(data.read_text())
    for name, text in (("one", rows[0]["conversations"][-1]["value"]), ("two", "no colour")):
        given = tmp_path / f"{name}.jsonl"
        given.write_text("\n".join(json.dumps({"id": row["id"], "prediction": text}) for row in rows))
        scored = mmtune("eval", "--benchmark", "qa", "--data", data, "--predictions", given, "--output", f"e/{name}")
        assert scored.code == 0, scored.err
    found = mmtune("compare", "e/one", "e/two", "--html", "page.html", "--json")
    assert found.code == 0, found.err
    assert (found.json["ranked"], found.json["evaluations"][0]["given"]) == (True, ["one", "two"])
    assert Path(found.json["html"]).is_file()
    shown = mmtune("compare", "e/one", "e/two")
    assert "Answers of one and two were given" in shown.out + shown.err
    Path("run").mkdir()
    Path("run", "status.json").write_text('{"status": "completed"}')
    mixed = mmtune("compare", "e/one", "run", "--json")
    assert (mixed.code, mixed.error["exit"]) == (2, 2)
    assert "mmtune compare e/one DIR" in mixed.error["fix"]
