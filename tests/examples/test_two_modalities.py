"""Pictures and calls in one conversation: the data, a few steps, and (slowly) that both are learnt."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mmtune.evaluation.run import evaluate
from mmtune.model.build import load
from mmtune.train.recipe import resolve
from mmtune.train.run import train
from tests.examples.loading import module_of

pytest.importorskip("soundfile", reason="the extra audio reads sounds")
pytest.importorskip("soxr", reason="the extra audio reads sounds")
EXAMPLE = Path(__file__).parents[2] / "examples" / "two_modalities"
SMALL = {"train": 20, "val": 5, "test": 14, "ear_steps": 2}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return module_of(EXAMPLE / "make_data.py")


@pytest.fixture(scope="module")
def made(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    example.make_data(folder, **SMALL)
    return folder


def rows(folder: Path, part: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
    return found


def test_rows_hold_both_media_or_one_of_them(made: Path) -> None:
    assert {(len(row["images"]), len(row["audios"])) for row in rows(made, "train")} == {(1, 1), (1, 0), (0, 1)}
    for row in rows(made, "train") + rows(made, "test"):
        said = "".join(message["content"] for message in row["messages"])
        assert (said.count("<image>"), said.count("<audio>")) == (len(row["images"]), len(row["audios"]))
    for part, key in (("test_blank", "images"), ("test_silent", "audios")):
        for poor, row in zip(rows(made, part), rows(made, "test"), strict=True):
            assert {**poor, key: row[key]} == row
            assert poor[key] != row[key]


def test_a_call_has_the_pitch_of_its_color(example: ModuleType, tmp_path: Path) -> None:
    for color, pitch in example.PITCH.items():
        example.write_wav(tmp_path / "call.wav", example.call(color, "small", example.random.Random(color)))
        with wave.open(str(tmp_path / "call.wav")) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        assert np.abs(np.fft.rfft(samples)).argmax() == pytest.approx(pitch, rel=example.DETUNE, abs=1)


def test_the_same_seed_gives_the_same_media(example: ModuleType, made: Path, tmp_path: Path) -> None:
    example.make_data(tmp_path, **SMALL)
    for path in [*made.glob("*.json"), *made.glob("*/*.png"), *made.glob("*/*.wav")]:
        assert (tmp_path / path.relative_to(made)).read_bytes() == path.read_bytes(), path.name


def learn(folder: Path, output: Path, *sets: str) -> str:
    overrides = {
        "data.train": [str(folder / "train.json")],
        "model.encoders.audio.source": str(folder / "ear"),
        "run.device": "cpu",
    }
    recipe = resolve("finetune", file=EXAMPLE / "two-modalities.yaml", overrides=overrides, sets=sets)
    return str(train(recipe, verb="finetune", output=output)["model"])


def scores(model: str, data: Path, output: Path) -> dict[str, float]:
    found = evaluate(*load(model, device="cpu"), benchmark="qa", data=data, output=output, batch_size=64)
    return {name: each["exact_match"] for name, each in found["scores"]["types"].items()}


def test_a_few_steps(example: ModuleType, made: Path, tmp_path: Path) -> None:
    model = learn(made, tmp_path / "run", "train.max_steps=3", "train.batch_size=8")
    assert set(scores(model, made / "test.json", tmp_path / "eval")) == set(example.EXAM)


@pytest.mark.slow
def test_both_are_learnt(example: ModuleType, tmp_path: Path) -> None:
    example.make_data(tmp_path / "data")
    model = learn(tmp_path / "data", tmp_path / "run")
    found = scores(model, tmp_path / "data" / "test.json", tmp_path / "test")
    assert min(found.values()) >= 0.8
    assert sum(found.values()) / len(found) >= 0.9
    blank = scores(model, tmp_path / "data" / "test_blank.json", tmp_path / "blank")
    silent = scores(model, tmp_path / "data" / "test_silent.json", tmp_path / "silent")
    assert blank["picture_color"] < 0.4
    assert silent["sound_color"] < 0.4
