"""multi_token: any modality, one encoder call and one projector call each, whatever the rows hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mmtune.core.errors import MediaError, RecipeError, ShapeError, UsageError
from mmtune.data.sample import Media, Sample, Text, Turn
from mmtune.modalities import MODALITIES
from mmtune.modalities.image import ImageModality
from mmtune.model.build import build_model
from mmtune.nn.projector import VectorProjector
from mmtune.testing import check_method
from mmtune.testing.bench import pictures
from tests.tiny import save_tiny_lm, save_tiny_vision


class Stamp(ImageModality):
    """A second kind of picture, so that two modalities meet in one prompt."""

    name = "stamp"
    marker = "<stamp>"
    data_key = "stamps"


@pytest.fixture(autouse=True)
def stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODALITIES, "_loaded", {**MODALITIES._loaded, "stamp": Stamp})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    folder = tmp_path_factory.mktemp("parts")
    vision = [save_tiny_vision(folder / kind, kind) for kind in ("clip", "siglip")]
    return save_tiny_lm(folder / "lm"), vision[0], vision[1]


def encoders(folders: tuple[str, str, str]) -> dict[str, Any]:
    return {"image": folders[1], "stamp": {"source": folders[2], "settings": {"select": "pool"}}}


def build(folders: tuple[str, str, str], **settings: Any) -> tuple[Any, Any]:
    return build_model(base=folders[0], encoders=encoders(folders), method="multi_token", settings=settings)


def sample(name: str, *kinds: str) -> Sample:
    """Two rounds; the media stand in the question of the second."""
    colors = iter(("red", "green", "blue", "white", "black"))
    media = tuple(Media(kind, Image.new("RGB", (20, 16), next(colors))) for kind in kinds)
    turns = (
        Turn("user", (Text("hello"),)),
        Turn("assistant", (Text("hi"),)),
        Turn("user", (Text("see "), *media, Text(" now"))),
        Turn("assistant", (Text("a box"),)),
    )
    return Sample(name, turns)


def batch_of(processor: Any, *samples: Sample) -> dict[str, Any]:
    batch = processor.collate([processor.encode(item) for item in samples])
    batch.pop("ids", None)
    return dict(batch)


ROWS = (
    sample("both", "image", "stamp"),
    sample("none"),
    sample("two", "stamp", "image", "stamp"),
    sample("stamp", "stamp"),
    sample("image", "image", "image"),
)


def test_stacked_maps_equal_independent_ones() -> None:
    torch.manual_seed(0)
    stacked = VectorProjector(3, 5, 8, width=4)
    singles = []
    for index in range(4):
        layers: list[nn.Module] = []
        for number, size in ((0, 5), (2, 8), (4, 8)):
            linear = nn.Linear(size, 8)
            linear.weight.data = stacked.layers[number].weight[index].detach()
            linear.bias.data = stacked.layers[number].bias[index].detach()
            layers += [nn.GELU(), linear] if layers else [linear]
        singles.append(nn.Sequential(*layers))
    seen = torch.randn(6, 1, 5)
    expected = torch.cat([single(seen) for single in singles], dim=1)
    torch.testing.assert_close(stacked(seen), expected)
    assert stacked(seen[:0]).shape == (0, 4, 8)
    several = torch.randn(2, 3, 5)
    torch.testing.assert_close(stacked(several)[:, 4:8], stacked(several[:, 1:2]))


def test_placeholders_are_what_the_projectors_make(folders: tuple[str, str, str]) -> None:
    model, processor = build(folders, projectors={"stamp": {"width": 3, "layers": 1}})
    assert processor.slots == {"image": "positions", "stamp": "3 * positions"}
    ids = processor.encode(ROWS[0]).input_ids
    assert ids.count(model.placeholder_ids["image"]) == 4
    assert ids.count(model.placeholder_ids["stamp"]) == 3
    assert model.config.settings["projectors"]["stamp"] == {"kind": None, "width": 3, "layers": 1}


def test_one_call_of_encoder_and_projector_a_modality(folders: tuple[str, str, str]) -> None:
    model, processor = build(folders)
    calls: list[str] = []
    for name in model.modalities:
        for part, module in (("encoder", model.encoders[name]), ("projector", model.method.projector[name])):
            module.register_forward_hook(lambda *_, mark=f"{part} {name}": calls.append(mark))
    with torch.no_grad():
        together = model(**batch_of(processor, *ROWS)).logits
        assert sorted(calls) == ["encoder image", "encoder stamp", "projector image", "projector stamp"]
        calls.clear()
        for row, logits in zip(ROWS, together, strict=True):
            alone = model(**batch_of(processor, row)).logits[0]
            torch.testing.assert_close(logits[: len(alone)], alone, atol=1e-5, rtol=0)
    assert len(calls) == 4 + 0 + 4 + 2 + 2  # two calls for each modality that a row has


def test_absent_modalities_get_a_gradient_of_zero(folders: tuple[str, str, str]) -> None:
    model, processor = build(folders)
    model.set_trainable(["method"])
    model.train()
    model(**batch_of(processor, sample("a", "image"))).loss.backward()
    seen = {name: parameter.grad for name, parameter in model.method.named_parameters()}
    assert all(gradient is not None for gradient in seen.values())
    assert not any(bool(gradient.any()) for name, gradient in seen.items() if "stamp" in name)
    assert any(bool(gradient.any()) for name, gradient in seen.items() if "image" in name)


def test_media_that_did_not_come_are_noticed(folders: tuple[str, str, str]) -> None:
    model, processor = build(folders)
    batch = batch_of(processor, ROWS[0])
    with pytest.raises(ShapeError, match="no media came"):
        model(**{**batch, "media": {"image": batch["media"]["image"]}})


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"repetition_penalty": 1.2}, {}])
def test_batches_of_mixed_rows_decode_as_single_ones(folders: tuple[str, str, str], options: dict[str, Any]) -> None:
    model, processor = build(folders)
    model.eval()

    def decode(rows: tuple[Sample, ...]) -> Tensor:
        batch = processor.collate([processor.encode_prompt(row) for row in rows], side="left")
        del batch["ids"]
        return model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=None, **options)

    together = decode(ROWS)
    assert [decode((row,))[0].tolist() for row in ROWS] == together.tolist()


@pytest.mark.parametrize(
    ("projectors", "words", "fix"),
    [
        ({"imge": {}}, "no such modality", "write 'image'"),
        ({"image": {"kind": "vector"}}, "one vector an item", "select: pool"),
        ({"image": {"widht": 3}}, "Did you mean 'width'", "write 'width'"),
        ({"image": {"kind": "patches"}}, "patch", "change"),
        ({"stamp": {"width": 0}}, "greater than or equal to 1", "change"),
    ],
)
def test_settings_are_checked(folders: tuple[str, str, str], projectors: Any, words: str, fix: str) -> None:
    with pytest.raises(RecipeError, match=words) as error:
        build(folders, projectors=projectors)
    assert fix in str(error.value.fix)


def test_it_conforms_with_two_modalities(folders: tuple[str, str, str]) -> None:
    shown = {"image": pictures(), "stamp": pictures()[::-1]}
    check_method("multi_token", encoders=encoders(folders), items=shown)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma", "phi3", "gpt_neox"])
def test_vectors_conform_on_other_language_models(family: str, tmp_path: Path) -> None:
    pooled = {"source": save_tiny_vision(tmp_path, "dinov2"), "settings": {"select": "pool"}}
    check_method(
        "multi_token", {"projectors": {"image": {"width": 3}}}, language_model=family, encoders={"image": pooled}
    )


def test_rows_together_are_prepared_in_one_call_and_equal_rows_alone(
    folders: tuple[str, str, str], tmp_path: Path
) -> None:
    _, processor = build(folders)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = Sample(
        "broken", (Turn("user", (Media("image", str(tmp_path / "broken.png")), Text("?"))), ROWS[0].turns[1])
    )
    alone = [processor.encode(row) for row in ROWS]
    calls: list[int] = []
    for modality in processor.modalities.values():
        prepare = modality._prepare
        modality._prepare = lambda images, prepare=prepare: calls.append(len(images)) or prepare(images)
    *together, error = processor.encode_all([*ROWS, broken])
    assert sorted(calls) == [4, 4]  # images and stamps of all rows
    assert isinstance(error, MediaError)
    assert "broken" in str(error.where)
    for one, other in zip(alone, together, strict=True):
        assert one.input_ids == other.input_ids
        for name, raws in one.media.items():
            for left, right in zip(raws, other.media[name], strict=True):
                assert torch.equal(left["pixel_values"], right["pixel_values"])


def test_two_encoders_of_one_kind_cannot_be_told_apart(folders: tuple[str, str, str]) -> None:
    twins = {"image": folders[1], "second": {"kind": "image", "source": folders[2]}}
    with pytest.raises(UsageError, match="both told by <image>") as error:
        build_model(base=folders[0], encoders=twins, method="multi_token")
    assert error.value.where == "model.encoders.second"
