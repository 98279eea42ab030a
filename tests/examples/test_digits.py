"""The digits example: its data, and (slowly) that a user who copies its commands gets a reader of handwriting."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.examples.loading import module_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
WITHOUT = "scikit-learn holds the digits"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("sklearn", reason=WITHOUT)
    return module_of(EXAMPLE / "make_digits.py")


@pytest.fixture(scope="module")
def listed(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three files, without their pictures, which take ten times as long."""
    folder = tmp_path_factory.mktemp("listed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda picture, path: None)
        counts = {part: sum(found.values()) for part, found in example.make_digits(folder).items()}
    assert counts == {"test": 359, "val": 149, "train": 4 * 1289}
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the scans only."""
    datasets = pytest.importorskip("sklearn.datasets", reason=WITHOUT)
    scans = datasets.load_digits()
    some = SimpleNamespace(images=scans.images[:60], target=scans.target[:60])
    monkeypatch.setattr(datasets, "load_digits", lambda: some)


@pytest.fixture
def made(example: ModuleType, few: None, tmp_path: Path) -> Path:
    """The files and pictures of some scans."""
    example.make_digits(tmp_path / "made")
    return tmp_path / "made"


def rows(folder: Path, part: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
    return found


def test_a_fifth_is_held_out(listed: Path) -> None:
    seen: set[str] = set()
    for part, scans, copies in (("train", 1289, 4), ("val", 149, 1), ("test", 359, 1)):
        found = rows(listed, part)
        own = {row["id"].partition("-")[0] for row in found}  # the scan, of which there may be several pictures
        assert len(own) == scans
        assert len({row["id"] for row in found}) == len({row["image"] for row in found}) == scans * copies
        assert not own & seen
        seen |= own
    assert len(seen) == 1797
    assert 359 == 1797 // 5


def test_rows_ask_in_several_ways_and_answer_with_a_figure(example: ModuleType, listed: Path) -> None:
    for part in ("train", "val", "test"):
        asked: Counter[str] = Counter()
        for row in rows(listed, part):
            question, answer = (turn["value"] for turn in row["conversations"])
            asked[question.removeprefix("<image>\n")] += 1
            assert answer == row["type"]
            assert answer in list("0123456789")
        assert set(asked) == set(example.QUESTIONS)
    assert len({row["type"] for row in rows(listed, "test")}) == 10


def test_pictures_have_the_size_of_the_encoder(made: Path) -> None:
    with Image.open(made / rows(made, "test")[0]["image"]) as picture:
        assert picture.size == (96, 96)
        assert picture.mode == "RGB"
        low, high = picture.convert("L").getextrema()
    assert low < 100  # dark ink
    assert high > 200  # on white paper


def test_copies_of_a_scan_differ(made: Path) -> None:
    scan = rows(made, "train")[0]["id"].partition("-")[0]
    assert len({(made / "images" / f"{scan}-{copy}.png").read_bytes() for copy in range(4)}) == 4


def test_the_same_seed_gives_the_same_bytes(example: ModuleType, made: Path, tmp_path: Path) -> None:
    example.make_digits(tmp_path / "again")
    example.make_digits(tmp_path / "other", seed=1)
    for name in ("train.json", "test.json", rows(made, "train")[0]["image"]):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()
    assert (tmp_path / "other" / "test.json").read_bytes() != (made / "test.json").read_bytes()


def test_every_row_is_fit_for_training(made: Path, tmp_path: Path) -> None:
    from mmtune.data.prepare import prepare

    found = prepare([made / "train.json", made / "val.json"], tmp_path / "prepared", check_media="decode")
    assert (found["rows"], found["rejected"]) == (4 * 43 + 5, 0)


@pytest.mark.parametrize("method", ["llava", "vlora"])
def test_recipes_are_complete(method: str) -> None:
    from mmtune.train.recipe import check_method_settings, resolve

    recipe = resolve("finetune", file=EXAMPLE / f"digits-{method}.yaml")
    check_method_settings(recipe)
    assert recipe.method == method
    assert recipe.train.max_steps is None  # nano's own recipes have one, which would cut the epochs short


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vlora"])
def test_training_reads_handwriting(method: str, example: ModuleType, tmp_path: Path) -> None:
    from mmtune.data.prepare import prepare
    from mmtune.evaluation.run import evaluate
    from mmtune.model.build import load
    from mmtune.train.recipe import resolve
    from mmtune.train.run import train

    made = tmp_path / "made"
    example.make_digits(made)
    for part in ("train", "val"):
        prepare([made / f"{part}.json"], tmp_path / part)
    given = {"data.train": [str(tmp_path / "train")], "data.validation": [str(tmp_path / "val")], "run.device": "cpu"}
    recipe = resolve("finetune", file=EXAMPLE / f"digits-{method}.yaml", overrides=given)
    done = train(recipe, verb="finetune", output=tmp_path / "run")
    model, processor = load(done["model"], device="cpu")
    found = evaluate(model, processor, benchmark="qa", data=made / "test.json", output=tmp_path / "eval", batch_size=32)
    assert found["scores"]["exact_match"] >= 0.9
