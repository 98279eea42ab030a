"""What inspect shows of data, checkpoints and runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmtune.core.errors import DataError
from mmtune.data.prepare import prepare
from mmtune.model.build import build_model
from mmtune.report.inspection.checkpoint import checkpoint_page, inspect_checkpoint
from mmtune.report.inspection.data import data_page, inspect_data
from mmtune.report.inspection.run import inspect_run, page
from mmtune.report.inspection.statistics import histogram, look_at
from tests.data.rows import good_rows, picture, talk, write_json
from tests.tiny import save_tiny_lm, save_tiny_vision


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    save_tiny_lm(folder / "lm")
    save_tiny_vision(folder / "vision")
    model, processor = build_model(
        base=str(folder / "lm"), encoders={"image": str(folder / "vision")}, method="llava", template="vicuna_v1"
    )
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


def test_data(checkpoint: Path, tmp_path: Path) -> None:
    from mmtune.model.processing import MMTuneProcessor

    rows = good_rows(tmp_path, 9)
    rows += [
        {"id": "markup", "conversations": talk("Is <script>alert(1)</script> bad?", "It & that are.")},
        {"id": "bad", "conversations": talk("Hi", "")},
    ]
    path = write_json(tmp_path / "rows.json", rows)
    prepare([path], tmp_path / "out", max_bad_fraction=0.2, model=str(checkpoint), split="train=0.8,val=0.2")
    processor = MMTuneProcessor.from_pretrained(checkpoint)
    found, strips = inspect_data(tmp_path / "out", processor, samples=20, model="tiny")
    assert json.loads(json.dumps(found)) == found
    assert (found["rows"], found["rejected"], found["reasons"]) == (10, 1, {"empty_answer": 1})
    assert found["sources"][0]["without_media"] == 4
    assert found["outliers"]["most repeated answer"][0]["value"] == 6
    assert all(len(rows) <= 5 for rows in found["outliers"].values())
    assert sum(found["histograms"]["turns"]["counts"]) == 10
    assert [strip.error for strip in strips] == [None] * 10
    longest = max(strip.positions for strip in strips)
    for strip in strips:
        kinds = [token.kind for token in strip.tokens]
        assert kinds.count("trained") == strip.trained == found["samples"][strips.index(strip)]["trained"]
        padding = re.search(r"\d+", strip.tokens[-1].text) if kinds[-1] == "padding" else None
        assert strip.positions + (int(padding.group()) if padding else 0) == longest
        assert len(strip.pictures) == kinds.count("media")
    written = data_page(found, strips)
    assert "<script>" not in written
    assert "empty answer" in written
    assert not re.search(r'(src|href)="(?!data:)', written)


def test_data_that_a_model_cannot_take_is_shown_with_the_reason(checkpoint: Path, tmp_path: Path) -> None:
    from mmtune.model.processing import MMTuneProcessor

    (tmp_path / "a.wav").write_bytes(b"RIFF")
    path = write_json(tmp_path / "rows.json", [{"audio": "a.wav", "conversations": talk("<audio>\nWhat?", "A bell.")}])
    prepare([path], tmp_path / "out")
    processor = MMTuneProcessor.from_pretrained(checkpoint)
    found, strips = inspect_data(tmp_path / "out", processor, samples=3, model="tiny")
    assert "audio" in str(strips[0].error)
    assert "audio" in data_page(found, strips)


def test_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    from mmtune.model.build import load

    model, processor = load(checkpoint, device="cpu")
    shown = str(picture(tmp_path / "a.png"))
    found, card = inspect_checkpoint(model, processor, str(checkpoint), shown)
    assert json.loads(json.dumps(found)) == found
    assert found["method"] == "llava"
    assert found["parameters"] == sum(row["parameters"] for row in found["components"])
    assert {row["component"] for row in found["components"]} >= {"projector.image", "language", "encoder.image"}
    assert "adapter.safetensors" in {entry["file"] for entry in found["files"]}
    assert inspect_checkpoint(model, processor, str(checkpoint), shown)[0]["sha256"] == found["sha256"]
    assert found["sha256"][:16] in checkpoint_page(found, card)


def test_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: llava\ntrain: {epochs: 1}\n")
    (tmp_path / "status.json").write_text(json.dumps({"status": "interrupted", "verb": "finetune", "steps": 3}))
    lines = [json.dumps({"step": step, "loss": 3.0 - step, "learning_rate": 0.1}) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"st']))
    state = tmp_path / "checkpoints" / "step-000002"
    state.mkdir(parents=True)
    (state / "state.json").write_text(json.dumps({"step": 2, "data": "abc123"}))
    found = inspect_run(tmp_path)
    assert (found["status"], found["last_step"], found["lowest_loss"]) == ("interrupted", 2, 1.0)
    assert found["data_fingerprint"] == "abc123"
    assert "abc123" in page(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("values", "counts"),
    [([3], [1]), ([0, 1, 1], [1, 2]), (list(range(40)), [2] * 20), ([0, 100], [1] + [0] * 18 + [1])],
)
def test_histogram(values: list[int], counts: list[int]) -> None:
    found = histogram(values)
    assert found["counts"] == counts
    assert (found["low"], found["high"]) == (min(values), max(values))


def test_a_damaged_shard_is_told(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", [{"id": "a", "conversations": talk("What is it? " * 50, "A cat.")}])
    prepare([path], tmp_path / "out")
    shard = tmp_path / "out" / "train-00000.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:8] + bytes(len(content) // 4) + content[8 + len(content) // 4 :])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    with pytest.raises(DataError, match="damaged"):
        look_at(tmp_path / "out", manifest)
