"""Token lengths of rows, as a checkpoint's processor writes them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from mmtune.core.errors import CheckpointError, DataError
from mmtune.data.dataset import load_samples
from mmtune.data.lengths import Lengths
from mmtune.data.messages import RowError
from mmtune.data.prepare import prepare
from mmtune.data.sample import conversation
from mmtune.model.build import build_model
from mmtune.model.encoding import UntrainedError
from tests.data.rows import good_rows, talk, write_json
from tests.tiny import save_tiny_lm, save_tiny_vision


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lengths")
    save_tiny_lm(folder / "lm")
    save_tiny_vision(folder / "vision")
    model, processor = build_model(
        base=str(folder / "lm"), encoders={"image": str(folder / "vision")}, method="llava", template="vicuna_v1"
    )
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


def test_lengths(checkpoint: Path, tmp_path: Path) -> None:
    from mmtune.model.processing import MMTuneProcessor

    long = {"id": "long", "conversations": talk("word " * 3000, "Yes.")}
    path = write_json(tmp_path / "rows.json", [*good_rows(tmp_path, 6), long])
    found = prepare([path], tmp_path / "out", model=str(checkpoint))["lengths"]
    processor = MMTuneProcessor.from_pretrained(checkpoint)
    encoded = [processor.encode(row) for row in load_samples(path)]
    lengths = [len(row.input_ids) for row in encoded]
    assert found["rows"] == 7
    assert found["positions"]["max"] == max(lengths)
    assert found["limit"] > 0
    assert found["over_limit"] == sum(length > found["limit"] for length in lengths) == 1
    assert found["trained_fraction"] == round(sum(row.num_targets for row in encoded) / sum(lengths), 6)


def test_rows_that_the_model_cannot_learn_from(checkpoint: Path, tmp_path: Path) -> None:
    sound = {"id": "s", "audio": "a.wav", "conversations": talk("<audio>\nWhat?", "A bell.")}
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    long = {"id": "long", "conversations": talk("word " * 3000, "Yes.")}
    path = write_json(tmp_path / "rows.json", [*good_rows(tmp_path, 2), sound, long])
    found = prepare([path], tmp_path / "out", model=str(checkpoint), max_bad_fraction=0.5, reject=["too_long"])
    assert found["reasons"] == {"media_not_taken": 1, "too_long": 1}
    assert found["lengths"]["sources"][str(path)]["rows"] == 2
    assert prepare([path], tmp_path / "kept", model=str(checkpoint), max_bad_fraction=0.5)["warnings"]["too_long"] == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [(UntrainedError("No token."), "nothing_to_train"), (DataError("Not so."), "not_encodable")],
)
def test_what_the_processor_refuses_is_rejected(error: DataError, reason: str) -> None:
    class Refusing:
        modalities: ClassVar[dict[str, object]] = {}

        def measure(self, sample: object) -> object:
            raise error

    with pytest.raises(RowError) as raised:
        Lengths(Refusing(), None).measure(conversation("Hi", "Hello."))
    assert raised.value.reason == reason


def test_no_such_model(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", good_rows(tmp_path, 2))
    with pytest.raises(CheckpointError):
        prepare([path], tmp_path / "out", model=str(tmp_path / "none"))
