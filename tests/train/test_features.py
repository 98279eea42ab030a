"""Kept features: the same losses, no medium opened or encoded twice, and nothing but true entries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

import mmtune.train.feature_setup as setup
from mmtune.core.errors import NotPossibleError, ResourceError
from mmtune.data.sample import Media, Sample, Turn
from mmtune.modalities.image import ImageModality
from mmtune.train.features import DamagedEntry, FeatureStore, KeptModality, encoder_key, medium_digest
from mmtune.train.feed import Mixture
from mmtune.train.recipe import Recipe
from mmtune.train.run import train
from tests.tiny import save_tiny_vision
from tests.train.conftest import write_rows

CPU = torch.device("cpu")


@pytest.fixture
def siglip(tmp_path: Path) -> str:
    """An encoder whose results for a picture do not depend on the size of its batch, to the last bit."""
    return save_tiny_vision(tmp_path / "siglip", "siglip")


def losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row.get("loss", row.get("validation_loss")) for row in rows]


@pytest.mark.parametrize(("method", "workers"), [("llava", 2), ("vlora", 0)])
def test_losses_are_those_without(
    recipe: Callable[..., Recipe], tmp_path: Path, siglip: str, data: Path, method: str, workers: int
) -> None:
    """Bit by bit: filling the cache, reading it in later epochs, and in a second run."""
    changes: dict[str, Any] = {
        "data__cache": str(tmp_path / "cache"), "model__vision": siglip, "data__workers": workers,
        "train__max_steps": 10, "data__validation": [{"path": str(data)}], "save__every_steps": 4,
    }  # fmt: skip
    train(recipe(method, **changes), output=tmp_path / "plain")
    kept = recipe(method, **changes, data__cache_features=True)
    first = train(kept, output=tmp_path / "first")["features"]
    second = train(kept, output=tmp_path / "second")["features"]
    assert losses(tmp_path / "first") == losses(tmp_path / "second") == losses(tmp_path / "plain")
    assert first["hits"] > 0
    assert first["misses"] >= 4  # colours
    assert first["bytes_written"] == sum(file.stat().st_size for file in Path(first["folders"][0]).rglob("*.features"))
    assert first["dtype"] == "float32"
    assert (second["misses"], second["bytes_written"]) == (0, 0)
    assert "from disk" in (tmp_path / "second" / "log.txt").read_text()


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    recipe: Callable[..., Recipe], tmp_path: Path, siglip: str
) -> None:
    """The cache then holds what the lost steps had added, and a part of a batch is missing from it."""
    changes: dict[str, Any] = {"model__vision": siglip, "data__cache_features": True, "save__every_steps": 3}
    whole = recipe(**changes, data__cache=str(tmp_path / "cache"))
    train(whole, output=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for step in ("step-000008", "step-000006"):
        shutil.rmtree(tmp_path / "stopped/checkpoints" / step, ignore_errors=True)
    shutil.copytree(tmp_path / "whole/checkpoints/step-000006", tmp_path / "stopped/checkpoints/step-000006")
    shutil.rmtree(tmp_path / "stopped/model")
    (tmp_path / "stopped/status.json").write_text('{"status": "failed", "verb": "finetune"}')
    entries = sorted((tmp_path / "cache").rglob("*.features"))
    entries[0].unlink()
    train(whole, output=tmp_path / "stopped")
    one, other = (tmp_path / name / "model/adapter.safetensors" for name in ("whole", "stopped"))
    assert one.read_bytes() == other.read_bytes()


def test_damaged_entries_are_made_again(recipe: Callable[..., Recipe], tmp_path: Path, siglip: str) -> None:
    kept = recipe(model__vision=siglip, data__cache_features=True, data__cache=str(tmp_path / "cache"))
    train(kept, output=tmp_path / "first")
    entries = sorted((tmp_path / "cache").rglob("*.features"))
    before = [entry.read_bytes() for entry in entries]
    entries[0].write_bytes(before[0][:-3])
    entries[1].write_bytes(before[1][:-1] + bytes([before[1][-1] ^ 1]))
    entries[2].write_bytes(b"")
    found = train(kept, output=tmp_path / "second")["features"]
    assert found["damaged"] >= 3
    assert [entry.read_bytes() for entry in entries] == before
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    log = (tmp_path / "second" / "log.txt").read_text()
    assert log.count("damaged and made again") == 1


def test_the_limit_holds_and_is_told(recipe: Callable[..., Recipe], tmp_path: Path, siglip: str) -> None:
    kept = recipe(
        model__vision=siglip, data__cache_features=True, data__cache=str(tmp_path / "cache"),
        data__cache_features_gb=1.5e-6,
    )  # fmt: skip
    found = train(kept, output=tmp_path / "run")["features"]
    assert 0 < found["bytes_written"] <= 1500
    assert found["misses"] > 4
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "the limit of data.cache_features_gb is reached" in log
    assert "the others are encoded each time" in log


def test_the_disk_is_asked_first(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, num_bytes: int, fix: str) -> None:
        raise ResourceError(f"{num_bytes} needed", fix=fix)

    monkeypatch.setattr(setup, "need_space", full)
    with pytest.raises(ResourceError, match="needed") as caught:
        train(recipe(data__cache_features=True, data__cache=str(tmp_path / "cache")), output=tmp_path / "run")
    assert "data.cache_features_gb" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("method", "changes", "why"),
    [
        ("lavin", {}, "inside the encoder"),
        ("llava", {"train__roles": ["method", "encoder"]}, "train.roles names 'encoder'"),
        ("llava", {"train__roles": ["method", "encoder.image"]}, "'encoder.image'"),
        ("llava", {"tune__kind": "lora", "tune__targets": "encoder-linear"}, "LoRA"),
    ],
)
def test_refused_where_features_change(
    recipe: Callable[..., Recipe], tmp_path: Path, method: str, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(NotPossibleError, match="Features cannot be kept") as caught:
        train(recipe(method, data__cache_features=True, **changes), output=tmp_path / "run")
    assert why in caught.value.message
    assert not (tmp_path / "run").exists()


def test_the_key_follows_weights_settings_and_precision(tmp_path: Path) -> None:
    folder = save_tiny_vision(tmp_path)
    modality = ImageModality.from_source(folder)
    encoder = modality.load_encoder(torch.float32)

    def key(of: ImageModality = modality, precision: str = "fp32") -> str:
        return encoder_key(of, encoder, of.preparation(), precision, CPU)

    first = key()
    assert first == key(ImageModality.from_source(folder))
    others = [
        key(precision="bf16"),
        key(ImageModality.from_source(folder, settings={"layer": -1})),
        key(ImageModality.from_source(folder, settings={"aspect": "square"})),
    ]
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    assert len({first, key(), *others}) == 5


def test_the_key_follows_attention_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modality = ImageModality.from_source(save_tiny_vision(tmp_path))
    encoder: Any = modality.load_encoder(torch.float32)
    keys = []
    for attention in ("sdpa", "eager"):
        encoder.set_attn_implementation(attention)
        keys.append(encoder_key(modality, encoder, modality.preparation(), "fp32", CPU))
    for library in (torch, transformers):
        with monkeypatch.context() as patch:
            patch.setattr(library, "__version__", "0.0.1")
            keys.append(encoder_key(modality, encoder, modality.preparation(), "fp32", CPU))
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    ("limit", "rows", "said"), [(250, 3, "at least 3 image"), (10_000, 10, "features of 10 image")]
)
def test_rows_are_read_until_more_is_found_than_may_be_kept(tmp_path: Path, limit: int, rows: int, said: str) -> None:
    read: list[int] = []

    class Rows(list[Sample]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    modality = ImageModality.from_source(save_tiny_vision(tmp_path / "vision"))
    samples = Rows(Sample(str(at), (Turn("user", (Media("image", f"{at}.png"),)),)) for at in range(10))
    kept = {"image": KeptModality(modality, FeatureStore(tmp_path / "kept", limit))}
    features = setup.KeptFeatures(kept, {"image": 100}, tmp_path, limit, limit)
    notes: list[str] = []
    data: Any = SimpleNamespace(feed=SimpleNamespace(mixture=Mixture([samples], [1.0], 0)))
    features.check_room(data, SimpleNamespace(note=notes.append))  # type: ignore[arg-type]
    assert read == list(range(rows))
    assert said in notes[0]
    assert (len(notes) == 2) == (limit == 250)


def test_what_a_medium_is_called_by(tmp_path: Path) -> None:
    path = write_rows(tmp_path).with_name("0.png")
    assert medium_digest(str(path)) == medium_digest(path.read_bytes()) == medium_digest(path)
    assert medium_digest(Image.new("RGB", (2, 2))) is None
    assert medium_digest("data:image/png;base64,%%%") is None
    assert medium_digest(str(tmp_path / "none.png")) is None


def test_tiles_of_several_shapes_come_back(tmp_path: Path) -> None:
    """Pictures of several lengths, with masks and line breaks, kept and fresh in one batch."""
    settings = {"aspect": "anyres", "pinpoints": [(16, 32), (32, 16), (32, 32)]}
    modality = ImageModality.from_source(save_tiny_vision(tmp_path / "v", "siglip"), settings=settings)
    encoder = modality.load_encoder(torch.float32)
    sizes = ((40, 20), (20, 40), (33, 30), (90, 9))
    pictures = []
    for index, size in enumerate(sizes):
        Image.new("RGB", size, (60 * index, 9, 9)).save(tmp_path / f"{index}.png")
        pictures.append(str(tmp_path / f"{index}.png"))
    kept = KeptModality(modality, FeatureStore(tmp_path / "kept", 10**9))
    with torch.no_grad():
        values, mask, breaks = modality.encode(encoder, modality.collate(modality.load_all(pictures)))  # type: ignore[arg-type]
        kept.encode(encoder, kept.collate(kept.load_all(pictures[:2])))  # type: ignore[arg-type]
        raws = kept.load_all(pictures)
        found = kept.encode(encoder, kept.collate(raws))  # type: ignore[arg-type]
    assert (kept.hits, kept.misses) == (2, 4)
    assert mask is not None
    assert breaks is not None
    assert torch.equal(found[1], mask)  # type: ignore[arg-type]
    assert torch.equal(found[2] & mask, breaks & mask)  # type: ignore[operator]
    real = mask & ~breaks
    assert torch.equal(found[0][real], values[real])
    lengths = [kept.positions(raw) for raw in raws if not isinstance(raw, Exception)]
    assert lengths == mask.sum(1).tolist()


def test_a_store_tells_damage_from_absence(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 10**6)
    digest = "ab" * 32
    assert store.get(digest) is None
    assert store.put(digest, {"values": torch.ones(2, 3, dtype=torch.bfloat16)})
    found = store.get(digest)
    assert found is not None
    assert found["values"].dtype == torch.bfloat16
    path = next(tmp_path.rglob("*.features"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DamagedEntry):
        store.get(digest)
    assert not list(tmp_path.rglob("*.partial"))
