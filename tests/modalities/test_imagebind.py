"""ImageBind: refused where its package is missing, and the path through it where something of that name is there."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mmtune.core.errors import CheckpointError, MediaError, NotPossibleError, RecipeError
from mmtune.modalities.imagebind import ImageBindModality
from mmtune.testing import check_modality
from mmtune.testing.encoders import tone


class StandIn(nn.Module):
    """What answers as the real encoder does: a vector for each item of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.audio, self.text = nn.Linear(3, 1024), nn.Linear(2, 1024), nn.Linear(1, 1024)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = self.text.weight.dtype
        return {kind: self.get_submodule(kind)(values.to(dtype)) for kind, values in inputs.items()}


def vision(paths: list[str], device: str) -> Tensor:
    return torch.stack(
        [torch.tensor(Image.open(path).convert("RGB").resize((1, 1)).getpixel((0, 0))) / 255 for path in paths]
    )


def audio(paths: list[str], device: str) -> Tensor:
    contents = [Path(path).read_bytes() for path in paths]
    return torch.tensor([[len(content) / 1000, sum(content) / 1e6] for content in contents])


def text(texts: list[str], device: str) -> Tensor:
    return torch.tensor([[len(one)] for one in texts])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with the names that the real one has."""
    names = ("imagebind", "imagebind.data", "imagebind.models", "imagebind.models.imagebind_model")
    modules = {name: ModuleType(name) for name in names}
    modules["imagebind"].__spec__ = ModuleSpec("imagebind", None)
    data = modules["imagebind.data"]
    data.load_and_transform_vision_data, data.load_and_transform_audio_data = vision, audio  # type: ignore[attr-defined]
    data.load_and_transform_text = text  # type: ignore[attr-defined]
    modules["imagebind.models.imagebind_model"].imagebind_huge = lambda pretrained: StandIn()  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def save(folder: Path) -> str:
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(StandIn().state_dict(), folder / "imagebind_huge.pth")
    return str(folder)


def test_without_the_package_settings_are_read_and_the_rest_is_refused() -> None:
    modality = ImageBindModality.from_source("imagebind_huge")
    assert (modality.marker, modality.data_key, modality.width) == ("<imagebind>", "imagebinds", 1024)
    for attempt in (lambda: modality.load_encoder(torch.float32), lambda: modality.load({"text": "A dog."})):
        with pytest.raises(NotPossibleError, match="not installed") as error:
            attempt()
        assert error.value.exit_code == 4
        assert error.value.fix == "pip install git+https://github.com/facebookresearch/ImageBind"
    with pytest.raises(RecipeError):
        ImageBindModality.from_source("imagebind_huge", settings={"layer": 1})


@pytest.mark.usefixtures("installed")
def test_it_keeps_what_every_modality_keeps(tmp_path: Path) -> None:
    paths = []
    for name, color in (("a.JPG", "red"), ("b.png", "blue")):
        paths.append(str(tmp_path / name))
        Image.new("RGB", (4, 4), color).save(paths[-1])
    (tmp_path / "c.WAV").write_bytes(tone(440))
    items = [
        paths[0],
        {"text": "A dog."},
        str(tmp_path / "c.WAV"),
        {"path": paths[1]},
        tone(220),
        Path(paths[1]).read_bytes(),
    ]
    check_modality("imagebind", source=save(tmp_path / "weights"), items=items)


@pytest.mark.usefixtures("installed")
def test_faults(tmp_path: Path) -> None:
    folder = save(tmp_path / "weights")
    modality = ImageBindModality.from_source(folder)
    (tmp_path / "a.mp4").write_bytes(b"video")
    (tmp_path / "a.png").write_bytes(b"no picture")
    for item, words in (
        (str(tmp_path / "a.mp4"), "neither a picture nor a sound"),
        (str(tmp_path / "a.png"), "cannot be read"),
        (str(tmp_path / "none.png"), "No such"),
        ({"text": " "}, "empty"),
        (b"", "empty"),
        (3, "int is no item"),
    ):
        with pytest.raises(MediaError, match=words):
            modality.load(item)
    Path(folder, "imagebind_huge.pth").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        modality.load_encoder(torch.float32)
