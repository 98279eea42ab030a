"""The drawn world: pictures, data sets and the two readers to beat."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtune.core.errors import UsageError
from mmtune.nano.world.baselines import blind_prior, unbound_reader
from mmtune.nano.world.dataset import question_keys, row_scene, write_dataset
from mmtune.nano.world.draw import COLOR_RGB, draw_example, draw_scene
from mmtune.nano.world.scene import (
    COLORS,
    HELD_OUT,
    SHAPES,
    SHORT_TYPES,
    SIZES,
    Scene,
    Thing,
    caption,
    sample_scene,
)

COUNTS = {"train": 60, "val": 16, "test": 80, "test_heldout": 80}
FILES = ("pretrain", *COUNTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("world") / "data", seed=3, **COUNTS)


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, list[dict]]:
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in FILES}


def thing_mask(picture: Image.Image) -> np.ndarray:
    """Where the picture differs clearly from its top left pixel, the background."""
    levels = np.asarray(picture, dtype=int)
    return np.abs(levels - levels[0, 0]).sum(-1) > 60


def test_same_seed_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib, random; from mmtune.nano.world.draw import draw_scene; "
        "from mmtune.nano.world.scene import sample_scene; r = random.Random(5); "
        "print(hashlib.sha256(b''.join(draw_scene(sample_scene(r), seed=i).tobytes() for i in range(20))).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    rng = random.Random(5)
    here = b"".join(draw_scene(sample_scene(rng), seed=index).tobytes() for index in range(20))
    assert hashlib.sha256(here).hexdigest() == other


def test_seed_changes_the_picture() -> None:
    scene = sample_scene(random.Random(0), 2, 2)
    assert draw_scene(scene, seed=0).tobytes() != draw_scene(scene, seed=1).tobytes()


@pytest.mark.parametrize("size", [32, 96, 100, 384])
def test_any_size(size: int) -> None:
    picture = draw_scene(sample_scene(random.Random(0)), size=size, seed=0)
    assert (picture.size, picture.mode) == ((size, size), "RGB")


def test_sizes_show_the_same_picture() -> None:
    scene = sample_scene(random.Random(1), 3, 3)
    small = np.asarray(draw_scene(scene, size=96, seed=4), dtype=int)
    large = np.asarray(draw_scene(scene, size=384, seed=4).reduce(4), dtype=int)
    assert np.abs(small - large).mean() < 1.5


@pytest.mark.parametrize("shape", SHAPES)
def test_every_thing_stays_in_its_cell_and_sizes_lie_apart(shape: str) -> None:
    areas: dict[str, list[int]] = {size: [] for size in SIZES}
    for index in range(40):
        size = SIZES[index % 2]
        mask = thing_mask(draw_scene(Scene((Thing(shape, "blue", size, 1, 2),)), seed=index))
        outside = mask.copy()
        outside[32:64, 64:96] = False
        assert not outside.any()
        areas[size].append(int(mask.sum()))
    assert min(areas["big"]) > 2 * max(areas["small"])


def test_colors_lie_apart_with_their_jitter() -> None:
    seen = []
    for label, color in enumerate(COLORS):
        for index in range(20):
            picture = draw_scene(Scene((Thing("square", color, "big", 1, 1),)), seed=index)
            seen.append((label, np.asarray(picture)[48, 48].astype(int)))
    palette = np.array([COLOR_RGB[color] for color in COLORS])
    for label, level in seen:
        distance = np.sort(np.linalg.norm(palette - level, axis=1))
        assert np.linalg.norm(palette[label] - level) == distance[0]
        assert distance[1] > 2 * distance[0]


def test_a_color_may_be_given_by_its_levels() -> None:
    picture = draw_scene(Scene((Thing("square", "#008080", "big", 1, 1),)), seed=0)
    assert np.abs(np.asarray(picture)[48, 48].astype(int) - (0, 128, 128)).max() <= 12


def test_the_example_is_what_draw_example_draws() -> None:
    file = Path(__file__).parents[2] / "examples" / "dino.png"
    assert Image.open(file).convert("RGB").tobytes() == draw_example().tobytes()


def test_dataset_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = write_dataset(tmp_path / "again", seed=3, **COUNTS)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_a_longer_split_begins_with_the_shorter_one(rows: dict[str, list[dict]], tmp_path: Path) -> None:
    longer = write_dataset(tmp_path / "longer", seed=3, train=0, val=0, test=88, test_heldout=0)
    assert json.loads((longer / "test.json").read_text(encoding="utf-8"))[:80] == rows["test"]


def test_another_seed_gives_other_rows(rows: dict[str, list[dict]], tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", seed=4, train=0, val=16, test=0, test_heldout=0)
    assert json.loads((other / "val.json").read_text(encoding="utf-8")) != rows["val"]


def test_rows_are_llava_json(folder: Path, rows: dict[str, list[dict]]) -> None:
    assert {name: len(found) for name, found in rows.items()} == {"pretrain": 60, **COUNTS}
    assert len(list((folder / "images").iterdir())) == sum(COUNTS.values())
    for name, found in rows.items():
        assert len({row["id"] for row in found}) == len(found)
        for row in found:
            turns = row["conversations"]
            assert isinstance(row["id"], str)
            assert Image.open(folder / row["image"]).size == (96, 96)
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
            assert turns[0]["value"].startswith("<image>\n")
            assert sum(turn["value"].count("<image>") for turn in turns) == 1
            assert all(turn["value"].strip() for turn in turns)
            if name == "train":
                described = row["types"] == ["describe"]
                assert described or ("describe" not in row["types"] and 5 <= len(row["types"]) <= 8)
            else:
                assert len(turns) == 2


def test_tests_are_balanced_and_hold_their_scene(rows: dict[str, list[dict]]) -> None:
    for split in ("val", "test", "test_heldout"):
        found = Counter(row["type"] for row in rows[split])
        assert set(found) == set(SHORT_TYPES)
        assert len(set(found.values())) == 1
    numbers = Counter(len(row["scene"]["things"]) for row in rows["test"])
    assert numbers[2] + numbers[3] > 3 * numbers[1]


def test_answers_agree_with_the_scene(rows: dict[str, list[dict]]) -> None:
    for row in rows["test"] + rows["test_heldout"]:
        scene, answer = row_scene(row), row["conversations"][1]["value"]
        color, shape = question_keys(row["conversations"][0]["value"])
        asked = [t for t in scene.things if color in (None, t.color) and shape in (None, t.shape)]
        if row["type"] == "yesno":
            assert answer == ("yes" if asked else "no")
        elif row["type"] == "count":
            assert answer == ("zero", "one", "two", "three")[len(scene.things)]
        else:
            assert len(asked) == 1
            attribute = row["type"].split("_of_")[0]
            assert answer == getattr(asked[0], attribute)


def test_held_out_pairs_are_only_where_they_belong(rows: dict[str, list[dict]]) -> None:
    for row in rows["pretrain"]:
        told = row["conversations"][1]["value"].rstrip(".").split(" and ")
        assert not {question_keys(part) for part in told} & HELD_OUT
    asked = [turn["value"] for row in rows["train"] for turn in row["conversations"][::2]]
    assert not {question_keys(text) for text in asked} & HELD_OUT
    assert not any(row_scene(row).has_held_out for row in rows["val"] + rows["test"])
    assert all(row_scene(row).has_held_out for row in rows["test_heldout"])
    for row in rows["test_heldout"]:
        color, shape = question_keys(row["conversations"][0]["value"])
        pairs = [thing.pair for thing in row_scene(row).things if thing.pair in HELD_OUT]
        if row["type"] not in ("yesno", "count"):
            assert any(color in (None, pair[0]) and shape in (None, pair[1]) for pair in pairs)
        elif row["type"] == "yesno" and row["conversations"][1]["value"] == "yes":
            assert (color, shape) in pairs


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space"):
        write_dataset(tmp_path / "data", train=2, val=0, test=0, test_heldout=0)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_content_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="not empty"):
        write_dataset(folder)


def make_row(type: str, question: str, answer: str, scene: Scene) -> dict:
    things = [
        {"shape": t.shape, "color": t.color, "size": t.size, "row": t.row, "column": t.column} for t in scene.things
    ]
    talk = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"type": type, "types": [type], "conversations": talk, "scene": {"background": 0, "things": things}}


def test_readers_by_hand() -> None:
    red, blue = Thing("circle", "red", "big", 0, 0), Thing("star", "blue", "big", 1, 1)
    green = Thing("square", "green", "small", 2, 2)
    scene = Scene((red, blue, green))
    color = make_row("color_of_shape", "what color is the circle?", "red", scene)
    size = make_row("size_of_shape", "how big is the square?", "small", scene)
    trap = make_row("yesno", "is there a red star?", "no", scene)
    absent = make_row("yesno", "is there a pink star?", "no", scene)
    count = make_row("count", "count the things.", "three", scene)
    found = unbound_reader([color, size, trap, absent, count])
    assert found == pytest.approx(
        {"color_of_shape": 1 / 3, "size_of_shape": 0, "yesno": 0.5, "count": 1, "mean": (1 / 3 + 0.5 + 1) / 4}
    )
    other = make_row("color_of_shape", "what color is the star?", "blue", scene)
    third = make_row("color_of_shape", "which color is the circle?", "blue", scene)
    # The circle is red more often than blue; squares were never asked about: the most frequent answer of the type.
    unseen = make_row("color_of_shape", "what color is the square?", "blue", scene)
    prior = blind_prior([color, color, third, other, other], [color, third, other, unseen])
    assert prior == pytest.approx({"color_of_shape": 0.75, "mean": 0.75})


def test_readers_leave_room_above_them(rows: dict[str, list[dict]]) -> None:
    for split in ("test", "test_heldout"):
        blind, unbound = blind_prior(rows["train"], rows[split]), unbound_reader(rows[split])
        assert set(blind) == set(unbound) == {*SHORT_TYPES, "mean"}
        assert blind["mean"] < 0.5 < unbound["mean"] < 0.75
        assert unbound["count"] == 1.0


def test_captions_name_everything(rows: dict[str, list[dict]]) -> None:
    scene = row_scene(rows["test"][1])
    assert all(thing.color in caption(scene) and thing.position in caption(scene) for thing in scene.things)
