"""Rows that are nearly the same as an earlier one: texts with a word changed, pictures saved again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmtune.core.errors import MissingExtraError, UsageError
from mmtune.data.dataset import load_samples
from mmtune.data.prepare import prepare
from tests.data.rows import talk, write_json

needs_extra = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("datasketch", "imagehash")), reason="extra dedup"
)
STORY = (
    "A brown dog runs across the wet field behind the old barn while two children in yellow coats call after it, and "
    "far away a train passes the hills without stopping at the small station that was closed many years ago."
)
OTHER = "Three ships lie in the harbour; their masts are bare, and nobody is to be seen on the long stone pier tonight."


def scene(number: int) -> Image.Image:
    """A picture of coarse patches, unlike those of other numbers."""
    patches = np.random.default_rng(number).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(patches).resize((320, 240), Image.Resampling.BICUBIC)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    scene(1).save(tmp_path / "a.png")
    scene(1).save(tmp_path / "a.jpg", quality=60)
    scene(1).resize((200, 150)).save(tmp_path / "small.png")
    scene(2).save(tmp_path / "b.png")
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):  # of one brightness pattern
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")

    def row(name: str, answer: str, image: str | None = None) -> dict[str, Any]:
        question = "Tell a story." if image is None else "<image>\nDescribe the picture."
        return {"id": name, "conversations": talk(question, answer)} | ({"image": image} if image else {})

    rows = [
        row("story", STORY),  # 0
        row("a word changed", STORY.replace("brown", "black")),  # 1: texts 0
        row("other", OTHER),  # 2
        row("a", STORY, "a.png"),  # 3
        row("as jpeg", STORY.replace("yellow", "red"), "a.jpg"),  # 4: rows, pictures 3
        row("other words", OTHER, "small.png"),  # 5: pictures 3; of the runs of it and 2, .77 are in both
        row("b", STORY, "b.png"),  # 6
        row("red", "A plain colour fills all of the picture from edge to edge.", "red.png"),  # 7
        row("blue", "A plain colour fills all of the picture from edge to edge.", "blue.png"),  # 8
        row("the same again", STORY.replace("yellow", "red"), "a.jpg"),  # 9: a copy of 4
    ]
    return write_json(tmp_path / "rows.json", rows)


def _ids(folder: Path) -> list[str]:
    return [sample.id for sample in load_samples(folder)]


@needs_extra
@pytest.mark.parametrize(
    ("what", "left_out"),
    [
        ("rows", {"a word changed", "as jpeg", "the same again"}),
        ("pictures", {"as jpeg", "other words", "the same again"}),
        ("texts", {"a word changed", "a", "as jpeg", "b", "the same again", "blue"}),
    ],
)
def test_near_duplicates_are_warned_of_or_rejected(source: Path, tmp_path: Path, what: Any, left_out: set[str]) -> None:
    warned = prepare([source], tmp_path / "warned", near_duplicates=what)
    assert warned["rows"] == 10
    assert warned["warnings"]["near_duplicate"] == warned["near_duplicates"] == len(left_out)
    found = prepare([source], tmp_path / "out", near_duplicates=what, reject=["near_duplicate"])
    assert found["reasons"] == {"near_duplicate": len(left_out)}
    assert set(_ids(tmp_path / "out")) == {sample.id for sample in load_samples(source)} - left_out


@needs_extra
def test_equal_whatever_the_workers_and_slices(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmtune.data.working._BLOCK_ROWS", 3)
    options: dict[str, Any] = {"near_duplicates": "rows", "reject": ["near_duplicate"]}
    one = prepare([source], tmp_path / "one", workers=0, **options)
    two = prepare([source], tmp_path / "two", workers=2, **options)
    for part in (1, 2):
        prepare([source], tmp_path / f"slice{part}", shard=(part, 2), **options)
    joined = prepare([tmp_path / "slice1", tmp_path / "slice2"], tmp_path / "joined")
    assert one["fingerprint"] == two["fingerprint"] == joined["fingerprint"]
    listed = [(tmp_path / name / "rejected.jsonl").read_text() for name in ("one", "two", "joined")]
    assert listed[0] == listed[1] == listed[2]


@needs_extra
def test_near_duplicates_stay_in_one_split(source: Path, tmp_path: Path) -> None:
    for seed in range(4):
        out = tmp_path / str(seed)
        prepare([source], out, near_duplicates="pictures", split="train=0.5,val=0.5", seed=seed)
        split_of = {sample.id: name for name in ("train", "val") for sample in load_samples(out, split=name)}
        assert split_of["a"] == split_of["as jpeg"] == split_of["other words"]


def test_rejecting_what_nobody_looks_for(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not looked for"):
        prepare([source], tmp_path / "out", reject=["near_duplicate"])


def test_without_the_extra(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmtune.data.signatures._PACKAGES", ("no_such_package",))
    with pytest.raises(MissingExtraError) as raised:
        prepare([source], tmp_path / "out", near_duplicates="rows")
    assert raised.value.exit_code == 4
    assert "mmtune[dedup]" in str(raised.value.fix)


@needs_extra
def test_a_picture_that_cannot_be_opened(source: Path, tmp_path: Path) -> None:
    (source.parent / "b.png").write_bytes(b"no picture")
    found = prepare([source], tmp_path / "out", near_duplicates="pictures", max_bad_fraction=0.1)
    assert found["reasons"] == {"media_damaged": 1}
