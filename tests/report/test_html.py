"""Reports are single files that hold everything, escape everything and stand missing parts."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtune.core.errors import DataError
from mmtune.data.prepare import prepare
from mmtune.data.sample import conversation
from mmtune.report.gallery import pick, show, spread
from mmtune.report.html import write_data_report, write_quickstart_report, write_run_report
from mmtune.report.page import format_bytes, format_count, format_percent, format_seconds, picture_uri

VOID = {"meta", "img", "source", "br", "link"}


class Balance(HTMLParser):
    """Checks that tags close in order and collects what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert all(value.startswith("data:") for value in parser.fetched)
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    return text


def run_folder(folder: Path) -> Path:
    rows = [{"step": step, "loss": 3 / step, "learning_rate": {"default": 1e-3}} for step in range(1, 31)]
    rows.append({"step": 30, "validation_loss": 0.25})
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    (folder / "recipe.yaml").write_text("schema: mmtune/1\nmethod: llava\ntrain: {epochs: 1, roles: [method]}\n")
    (folder / "command.txt").write_text("mmtune finetune --method llava --prompt '<b>'\n")
    status = {"status": "completed", "verb": "finetune", "steps": 30, "seconds": 75.0, "samples_per_second": 8.0}
    status |= {"loss": {"first": 3.0, "last": 0.1}, "trainable_parameters": 33_024}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "env.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2.0"}}))
    return folder


def test_a_run_report_holds_numbers_plots_settings_and_answers(tmp_path: Path) -> None:
    sample = conversation("Is <it> red?", "yes & no", media={"image": [Image.new("RGB", (40, 30), "red")]})
    components = [{"component": "projector", "parameters": 33_024, "trainable": 33_024, "learning_rate": "0.001"}]
    folder = run_folder(tmp_path / "run")
    path = write_run_report(folder, components=components, shown=[show(sample, {"model": "no"}, {"model": False})])
    text = check(path)
    for part in ("0.250", "at step 30", "33,024", "train.epochs", "&lt;b&gt;", "Is &lt;it&gt; red?", "yes &amp; no"):
        assert part in text
    assert 'class="wrong">no<' in text
    assert "<b>'" not in text
    assert (folder / "plots/loss.svg").is_file()


def test_a_run_that_has_hardly_begun_has_a_report_too(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    check(write_run_report(tmp_path / "run"))
    (tmp_path / "run/status.json").write_text('{"status": "failed", "error": {"message": "no <room>"}}')
    assert "no &lt;room&gt;" in check(write_run_report(tmp_path / "run"))
    with pytest.raises(DataError):
        write_run_report(tmp_path / "absent")


def test_a_data_report_counts_shows_and_lists(tmp_path: Path) -> None:
    Image.new("RGB", (30, 30), "blue").save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a <blue> one"}]
    rows = [{"id": str(index), "image": "a.png", "conversations": turns} for index in range(9)]
    rows.append({"id": "bad", "image": "absent.png", "conversations": turns})
    (tmp_path / "data.json").write_text(json.dumps(rows))
    prepare([tmp_path / "data.json"], tmp_path / "out", max_bad_fraction=0.5)
    text = check(write_data_report(tmp_path / "out"))
    for part in ("a &lt;blue&gt; one", "media missing", "row bad", "data:image/png;base64,"):
        assert part in text
    for part in ("Odd but used", "duplicate", "says the same"):
        assert part in text
    assert "Positions a row" not in text
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    lengths = {"limit": 2048, "over_limit": 1, "trained_fraction": 0.25, "positions": {"mean": 20.5, "max": 3071}}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({**manifest, "lengths": lengths}))
    text = check(write_data_report(tmp_path / "out"))
    for part in ("Positions a row", "3,071", "25.0", "rows over 2,048 positions"):
        assert part in text
    with pytest.raises(DataError):
        write_data_report(tmp_path)


def method_result(value: float) -> dict[str, Any]:
    types = {"count": value, "yesno": value}
    lines = {name: {"count": 0.25, "yesno": 0.5} for name in ("question_words", "blank_picture", "unbound")}
    baselines = {"question_words": 0.375, "blank_picture": 0.375, "unbound": 0.375, "types": lines}
    scores = {"exact_match": value, "contains": value, "types": types, "n": 8}
    return {
        "scores": {**scores, "held_out": scores},
        "baselines": {**baselines, "held_out": baselines},
        "seconds": 60.0,
        "run": "runs/x",
        "model": "runs/x/model",
        "phases": {"pretrain": 10.0, "finetune": 45.0, "evaluate": 5.0},
        "trainable_parameters": 33_024,
        "adapter_bytes": 132_096,
        "metrics": {"finetune": [{"step": step, "loss": 1 / step} for step in range(1, 40)]},
    }


@pytest.mark.parametrize("second", [method_result(0.93), {"error": {"message": "it <broke>", "fix": "mend it"}}])
def test_the_quickstart_lays_methods_side_by_side(tmp_path: Path, second: dict[str, Any]) -> None:
    results = {
        "methods": {"llava": method_result(0.94), "vlora": second},
        "seed": 0,
        "seconds": 130.0,
        "world": {"train": 100, "test": 8, "test_heldout": 8},
        "base": {"language": 1_330_000, "encoder": 563_000},
        "environment": {"torch": "2.0"},
    }
    text = check(write_quickstart_report(tmp_path, results))
    assert "94\u00a0%" in text
    assert "unbound reader" in text
    assert ("it &lt;broke&gt;" in text) == ("error" in second)
    assert ("top:26%" in text) == ("error" not in second)  # dots that would cover each other are moved apart


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_count(999), "999"),
        (format_count(33_024), "33,024"),
        (format_count(3_370_000), "3.37\u00a0M"),
        (format_count(6.7e9), "6.7\u00a0B"),
        (format_count(None), "–"),
        (format_percent(0.876), "88\u00a0%"),
        (format_seconds(8.44), "8.4\u00a0s"),
        (format_seconds(185), "3\u00a0min\u00a005\u00a0s"),
        (format_seconds(7620), "2\u00a0h\u00a007\u00a0min"),
        (format_bytes(132_096), "132\u00a0kB"),
    ],
)
def test_numbers_for_people(shown: str, expected: str) -> None:
    assert shown == expected


def test_pictures_are_embedded_small(tmp_path: Path) -> None:
    large = Image.new("RGB", (2000, 1000), "green")
    large.save(tmp_path / "large.jpg")
    buffer = io.BytesIO()
    large.save(buffer, "PNG")
    for item in (large, str(tmp_path / "large.jpg"), buffer.getvalue()):
        uri = picture_uri(item)
        assert uri is not None
        assert re.match(r"data:image/jpeg;base64,", uri)
        assert len(uri) < 50_000
    assert (tmp_path / "large.jpg").stat().st_size > 0
    assert large.size == (2000, 1000)


@pytest.mark.parametrize("item", [b"no picture", "absent.png", 7])
def test_what_cannot_be_shown_is_left_out(item: Any) -> None:
    assert picture_uri(item) is None


def test_a_gallery_shows_wrong_answers_but_not_only_those() -> None:
    wrong = [index in (3, 50, 51, 52, 53, 99) for index in range(100)]
    chosen = pick(range(100), wrong, 9)
    assert len(chosen) == len(set(chosen)) == 9
    assert sum(wrong[index] for index in chosen) == 3
    assert len(pick(range(100), [True] * 100, 9)) == 9
    assert pick(range(2), [False, True], 9) == [0, 1]
    assert spread(3, 9) == [0, 3, 6]


def test_a_card_keeps_history_and_other_media() -> None:
    card = show(conversation("a?", "b", "c?", "d", media={"audio": ["/tmp/sound.wav"]}))
    assert (card.question, card.gold, card.others) == ("c?", "d", ("audio: sound.wav",))
    assert card.history == (("user", "a?"), ("assistant", "b"))
