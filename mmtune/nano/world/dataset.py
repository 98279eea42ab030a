"""Write the demo data: drawn pictures and LLaVA json files, the same bytes for the same seed and the same Pillow.

Every row has a random state of its own, made from seed, split and number: a longer split begins with the rows of a
shorter one.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtune.core.errors import UsageError
from mmtune.nano.world.draw import draw_scene
from mmtune.nano.world.scene import (
    COLORS,
    HELD_OUT,
    SHAPES,
    SHORT_TYPES,
    Question,
    Scene,
    Thing,
    ask,
    sample_scene,
)

Row = dict[str, Any]

FORMAT = 2
"""Raised whenever the same seed gives other rows or other pictures."""

_DESCRIBED_SHARE = 0.33  # of training pictures are only described; the others are only asked about
_LOOKUPS = {
    "shape": {"color_of_shape": 2, "position_of_shape": 2, "size_of_shape": 1},
    "color": {"shape_of_color": 2, "position_of_color": 2, "size_of_color": 1},
}
"""Types by what their questions name, with how often they are asked."""

_TYPES_ASKED = {1: 3, 2: 3, 3: 2}
"""How many of these types a training row has, by the number of things."""

_TRAIN_NUMBERS = (10, 40, 50)  # weights of scenes of one, two and three things
_TEST_NUMBERS = (10, 35, 55)
_COUNT_NUMBERS = (1, 1, 1)  # when the number is asked for, no number is the better guess


def question_keys(text: str) -> tuple[str | None, str | None]:
    """Return the colour and the shape that a question names, or None."""
    words = re.findall(r"[a-z]+", text.lower())
    color = next((word for word in words if word in COLORS), None)
    return color, next((word for word in words if word in SHAPES), None)


def scene_row(scene: Scene) -> Row:
    """Return a scene as plain data."""
    names = ("shape", "color", "size", "row", "column")
    return {"background": scene.background, "things": [{k: getattr(thing, k) for k in names} for thing in scene.things]}


def row_scene(row: Row) -> Scene:
    """Return the scene of a row that ``scene_row`` wrote."""
    return Scene(tuple(Thing(**thing) for thing in row["scene"]["things"]), row["scene"]["background"])


def _turns(questions: Sequence[Question]) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    for index, question in enumerate(questions):
        marker = "" if index else "<image>\n"
        turns += [{"from": "human", "value": marker + question.text}, {"from": "gpt", "value": question.answer}]
    return turns


def _draw_number(rng: random.Random, weights: Sequence[int]) -> int:
    return rng.choices((1, 2, 3), weights)[0]


def ask_seen(scene: Scene, rng: random.Random, type: str) -> Question:
    """Ask a question that names no held-out pair: a sure "no" to every red circle would teach that there is none."""
    while True:
        question = ask(scene, rng, type)
        if question_keys(question.text) not in HELD_OUT:
            return question


def ask_held_out(scene: Scene, rng: random.Random, type: str) -> Question:
    """Ask about a thing of a held-out pair, as far as the type asks about one thing.

    A yesno question names its pair, or for half of the noes takes its colour or its shape.
    """
    pairs = [thing.pair for thing in scene.things if thing.pair in HELD_OUT]
    for _ in range(200):
        question = ask(scene, rng, type)
        color, shape = question_keys(question.text)
        if type != "yesno":
            fits = any(color in (None, pair[0]) and shape in (None, pair[1]) for pair in pairs)
        elif question.answer == "yes":
            fits = (color, shape) in pairs
        else:
            fits = any(color == pair[0] or shape == pair[1] for pair in pairs)
        if fits:
            return question
    return question


def _ask_all(scene: Scene, rng: random.Random) -> list[Question]:
    """Ask the same of every thing, for some types, and one yes/no question and the number somewhere between.

    Side by side the answers tell whose attribute is wanted; single questions are answered as well by naming any that
    occurs, and what belongs together is learnt much later. All questions of a row name the same attribute, and none
    follows a description: else a model reads answers from the turns before instead of the picture.
    """
    weights = dict(_LOOKUPS[rng.choice(list(_LOOKUPS))])
    asked = [ask_seen(scene, rng, "yesno"), ask(scene, rng, "count")]
    for _ in range(_TYPES_ASKED[len(scene.things)]):
        type = rng.choices(list(weights), list(weights.values()))[0]
        del weights[type]
        asked += [ask(Scene((thing,), scene.background), rng, type) for thing in scene.things]
    return rng.sample(asked, len(asked))


def _training_rows(rng: random.Random, name: str) -> tuple[Scene, list[tuple[str, Row]]]:
    number = _draw_number(rng, _TRAIN_NUMBERS)
    scene = sample_scene(rng, number, number, held_out=False)
    described = ask(scene, rng, "describe")
    asked = [described] if rng.random() < _DESCRIBED_SHARE else _ask_all(scene, rng)
    base: Row = {"id": name, "image": f"images/{name}.png"}
    qa = base | {"types": [question.type for question in asked], "conversations": _turns(asked)}
    told = base | {"types": ["describe"], "conversations": _turns([described])}
    return scene, [("train", qa), ("pretrain", told)]


def _test_rows(rng: random.Random, name: str, split: str, type: str) -> tuple[Scene, list[tuple[str, Row]]]:
    number = _draw_number(rng, _COUNT_NUMBERS if type == "count" else _TEST_NUMBERS)
    held_out = split == "test_heldout"
    scene = sample_scene(rng, number, number, held_out=held_out)
    if type == "yesno" and held_out:
        question = _balanced_yesno(scene, rng)
    else:
        question = (ask_held_out if held_out else ask_seen)(scene, rng, type)
    row: Row = {"id": name, "image": f"images/{name}.png", "type": type}
    return scene, [(split, row | {"conversations": _turns([question]), "scene": scene_row(scene)})]


def _balanced_yesno(scene: Scene, rng: random.Random) -> Question:
    """Draw the answer first: what fits a held-out thing is more often a yes than a no."""
    answer = rng.choice(("yes", "no"))
    while True:
        question = ask_held_out(scene, rng, "yesno")
        if question.answer == answer:
            return question


def _write_splits(folder: Path, seed: int, counts: dict[str, int]) -> None:
    files: dict[str, list[Row]] = {"pretrain": [], **{split: [] for split in counts}}
    (folder / "images").mkdir()
    for split, count in counts.items():
        for index in range(count):
            rng = random.Random(f"{seed} {split} {index}")
            name = f"{split}_{index:05d}"
            if split == "train":
                scene, rows = _training_rows(rng, name)
            else:
                scene, rows = _test_rows(rng, name, split, SHORT_TYPES[index % len(SHORT_TYPES)])
            draw_scene(scene, seed=rng.getrandbits(32)).save(folder / "images" / f"{name}.png")
            for file, row in rows:
                files[file].append(row)
    for file, rows in files.items():
        text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
        (folder / f"{file}.json").write_text(text, encoding="utf-8")
    about = {"format": FORMAT, "seed": seed, "counts": counts}
    (folder / "dataset.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


def write_dataset(
    folder: Path | str,
    *,
    seed: int = 0,
    train: int = 4000,
    val: int = 160,
    test: int = 800,
    test_heldout: int = 400,
) -> Path:
    """Write pictures and questions about them; all or nothing.

    ``pretrain.json`` describes each training picture in one turn, ``train.json`` asks about it, or in a
    third of the rows for the description again.
    ``val.json``, ``test.json`` and ``test_heldout.json`` hold one question a row, every short type in turn, with
    ``type`` and ``scene`` beside it. Only ``test_heldout.json`` has pairs of ``HELD_OUT``, and asks about them.
    ``dataset.json`` says what was written.

    Args:
        folder: A folder that does not exist yet, or an empty one.
        seed: Decides everything.
        train: Training pictures.
        val: Rows (and pictures) to validate with; the same for ``test`` and ``test_heldout``.
        test: Rows of the test with known pairs.
        test_heldout: Rows of the test with pairs that training never shows.

    Returns:
        The folder.

    Raises:
        UsageError: ``folder`` has content already.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty", fix="Name a new folder, or remove this one first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        partial.chmod(0o755)
        _write_splits(partial, seed, {"train": train, "val": val, "test": test, "test_heldout": test_heldout})
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder
