"""From data to answers through the command line, on tiny models: the keys that scripts rely on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

KEYS = {
    "prepare-data": {"output", "rows", "rejected", "reasons", "media", "seconds", "fingerprint"},
    "finetune": {
        "run", "model", "method", "status", "steps", "samples", "tokens", "loss", "trainable_parameters", "seconds",
        "samples_per_second", "tokens_per_second", "peak_memory_bytes", "resumed_from",
    },
    "eval": {
        "benchmark", "scorer", "rule", "scores", "n", "missing", "uninferred", "failed", "confidence", "model",
        "data_sha256", "output",
    },
}  # fmt: skip


def test_the_whole_way(mmtune: Run, checkpoint: Path, data: Path) -> None:
    prepared = mmtune("prepare-data", data, "--output", "prepared", "--check-media", "decode", "--json")
    assert KEYS["prepare-data"] <= set(prepared.json)
    options = ("--data", "prepared", "--epochs", 2, "--batch-size", 2, "--learning-rate", "1e-2", "--device", "cpu")
    rehearsal = mmtune("finetune", "--model", checkpoint, *options, "--dry-run", "--json")
    assert rehearsal.json["status"] == "dry_run"
    assert not Path("runs").exists()
    trained = mmtune("finetune", "--model", checkpoint, *options, "--json")
    assert trained.code == 0, trained.err
    assert KEYS["finetune"] <= set(trained.json)
    assert (trained.json["status"], trained.json["steps"]) == ("completed", 4)
    assert set(trained.json["loss"]) == {"first", "last"}
    command = Path(trained.json["run"], "command.txt").read_text()
    assert command.startswith(f"mmtune finetune --model {checkpoint}")
    answered = mmtune("generate", "--prompt", "Hi", "--max-new-tokens", 2, "--json")
    assert answered.json["model"] == trained.json["model"]
    assert "newest finished run" in answered.err
    scored = mmtune("eval", "--benchmark", "qa", "--data", data, "--output", "scores", "--json")
    assert KEYS["eval"] <= set(scored.json)
    assert {"exact_match", "contains"} <= set(scored.json["scores"])
    assert scored.json["model"] == trained.json["model"]


def test_a_dry_run_prints_the_recipe(mmtune: Run, checkpoint: Path, data: Path) -> None:
    shown = mmtune("finetune", "--model", checkpoint, "--data", data, "--seed", 7, "--dry-run", "-q")
    Path("again.yaml").write_text(shown.out)
    again = mmtune("finetune", "again.yaml", "--dry-run", "--json")
    assert again.code == 0, again.err
    assert again.json["recipe"] == shown.out
    assert "seed: 7" in shown.out


def test_losses_of_a_conversation_file(mmtune: Run, checkpoint: Path, data: Path) -> None:
    found = mmtune("eval", "--model", checkpoint, "--benchmark", "nll", "--data", data, "--json")
    assert [item["id"] for item in found.json["items"]] == ["row0", "row1", "row2"]
    assert set(found.json["items"][0]) >= {"id", "nll", "num_tokens"}


def test_a_score_below_the_minimum_keeps_the_scores(mmtune: Run, checkpoint: Path, data: Path) -> None:
    options = ("--model", checkpoint, "--benchmark", "qa", "--data", data, "--min-score", "0.99")
    found = mmtune("eval", *options, "--json")
    assert (found.code, found.error["code"]) == (8, "min_score")
    assert found.json["n"] == 3
    assert "exact_match" in mmtune("eval", *options).err


def test_given_predictions_need_no_model(mmtune: Run, data: Path) -> None:
    rows = [{"id": f"row{index}", "prediction": "Red 1."} for index in range(3)]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"id": "other", "prediction": "x"}])))
    found = mmtune("eval", "--benchmark", "qa", "--data", data, "--predictions", "p.jsonl", "--json")
    assert found.json["scores"]["exact_match"] == pytest.approx(1 / 3)


def test_presets_are_listed_and_printed(mmtune: Run) -> None:
    names = mmtune("presets", "--json").json["presets"]
    assert "vlora-7b-finetune" in names
    for name in names:
        shown = mmtune("presets", name)
        assert shown.code == 0
        Path("p.yaml").write_text(shown.out)
        assert mmtune("presets", name.replace("-", "_"), "--json").json["yaml"].rstrip() == shown.out.rstrip()
