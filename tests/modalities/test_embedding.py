"""Precomputed vectors: every form of file and list, the width, and every fault."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from mmtune.core.errors import CheckpointError, MediaError, RecipeError, UsageError
from mmtune.modalities.embedding import EmbeddingModality

VECTORS = np.arange(12, dtype=np.float64).reshape(3, 4) / 7


def saved(save: object, *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)  # type: ignore[operator]
    return file.getvalue()


@pytest.fixture
def modality() -> EmbeddingModality:
    return EmbeddingModality.from_source("none", settings={"width": 4})


def test_every_form_of_an_item(modality: EmbeddingModality, tmp_path: Path) -> None:
    path, archive = tmp_path / "a.npy", tmp_path / "a.npz"
    path.write_bytes(saved(np.save, VECTORS))
    archive.write_bytes(saved(np.savez, first=VECTORS[:1], all=VECTORS))
    expected = torch.tensor(VECTORS, dtype=torch.float32)
    forms = (
        path,
        str(path),
        path.read_bytes(),
        VECTORS,
        VECTORS.tolist(),
        torch.tensor(VECTORS),
        saved(np.savez, VECTORS),
    )
    for item in (*forms, {"path": str(path)}, {"path": str(archive), "key": "all"}):
        torch.testing.assert_close(modality.load(item)["values"], expected)
    for item in (
        VECTORS[1],
        VECTORS[1].tolist(),
        {"path": str(path), "row": 1},
        {"path": archive, "key": "all", "row": 1},
    ):
        torch.testing.assert_close(modality.load(item)["values"], expected[1:2])
    assert modality.positions(modality.load(path)) == 3


def test_items_of_different_lengths_in_a_batch(modality: EmbeddingModality) -> None:
    inputs = modality.collate([modality.load(VECTORS[:1]), modality.load(VECTORS)])
    values, mask, _ = modality.encode(modality.load_encoder(torch.float32), inputs)
    assert values.shape == (2, 3, 4)
    assert mask is not None
    assert mask.tolist() == [[True, False, False], [True, True, True]]


def test_the_width_comes_from_settings_a_file_or_a_folder(modality: EmbeddingModality, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(saved(np.save, VECTORS))
    assert EmbeddingModality.from_source(str(tmp_path / "a.npy")).settings.width == 4
    modality.save_source(modality.load_encoder(torch.float32), str(tmp_path / "saved"))
    assert EmbeddingModality.from_source(str(tmp_path / "saved")).width == 4
    with pytest.raises(UsageError, match="width of the embeddings is not known"):
        EmbeddingModality.from_source("none")
    with pytest.raises(CheckpointError, match="width"):
        EmbeddingModality.from_source(str(tmp_path))
    with pytest.raises(RecipeError):
        EmbeddingModality.from_source("none", settings={"width": 0})


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ([1.0, 2.0], r"shape \[1, 2\]"),
        ([[[1.0] * 4]], r"shape \[1, 1, 4\]"),
        (np.zeros((0, 4)), r"shape \[0, 4\]"),
        ([1.0, 2.0, 3.0, float("nan")], "not finite"),
        ([[1.0] * 4] * 5000, "5000 vectors"),
        ([[1.0] * 4, [1.0]], "no list of numbers"),
        (["a"] * 4, "no list of numbers"),
        (b"", "empty"),
        (b"no array" * 9, "Not a .npy"),
        (saved(np.save, VECTORS)[:-20], "Not a .npy"),
        (saved(np.savez, VECTORS)[:-90], "Not a .npy|damaged"),
        (saved(np.save, np.array([{"a": 1}], dtype=object)), "Not a .npy"),
        (saved(np.save, np.array(["a"])), "values of type"),
        (saved(np.savez, a=VECTORS, b=VECTORS), "holds the arrays a, b"),
        ("none.npy", "No such embedding"),
        (7, "shape"),
    ],
)
def test_what_is_no_embedding_is_named(modality: EmbeddingModality, item: object, words: str) -> None:
    with pytest.raises(MediaError, match=words) as error:
        modality.load(item)
    assert error.value.fix


def test_a_row_that_is_not_there(modality: EmbeddingModality, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(saved(np.save, VECTORS))
    for row in (3, -1, "x", True):
        with pytest.raises(MediaError, match="no row"):
            modality.load({"path": str(tmp_path / "a.npy"), "row": row})
