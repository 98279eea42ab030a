"""Opening, squaring and tiling pictures; reading encoders."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import unpad_image

from mmtune.core.errors import CheckpointError, MediaError, RecipeError, UsageError
from mmtune.modalities.image import ImageModality, pad_to_square
from mmtune.modalities.pictures import open_picture
from mmtune.modalities.tiles import BREAK, PADDING, best_resolution, cut_tiles, lay_out
from tests.tiny import save_tiny_vision


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "CMYK", "1", "I;16", "F"])
def test_every_mode_opens_as_rgb(mode: str) -> None:
    image = (
        Image.new("RGB", (6, 4), (200, 30, 60)).convert("L").convert(mode) if mode == "F" else Image.new(mode, (6, 4))
    )
    assert open_picture(image).mode == "RGB"


def test_sixteen_bits_keep_their_brightness() -> None:
    values = np.full((2, 2), 32768, dtype=np.uint16)
    assert abs(open_picture(Image.fromarray(values)).getpixel((0, 0))[0] - 128) <= 1


def test_bytes_data_uri_and_path_are_the_same(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise(5, 7).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    first, *others = (open_picture(item).tobytes() for item in (tmp_path / "a.png", buffer.getvalue(), uri))
    assert all(other == first for other in others)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = noise(8, 4)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (4, 8)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"x" * 40])
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(MediaError) as error:
        open_picture(path)
    assert error.value.where == str(path)
    assert error.value.fix


def test_truncated_missing_url_and_folder(tmp_path: Path) -> None:
    noise(64, 64).save(tmp_path / "whole.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    for item, words in (
        (cut, "damaged"),
        (tmp_path / "none.png", "No such"),
        ("https://x.y/z.png", "URL"),
        (tmp_path, "older"),
    ):
        with pytest.raises(MediaError, match=words):
            open_picture(item)


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(MediaError, match="too large"):
        open_picture(tmp_path / "bomb.png")


def test_padding_centres_with_floor() -> None:
    padded = pad_to_square(Image.new("RGB", (5, 2), (9, 9, 9)), (1, 2, 3))
    assert padded.size == (5, 5)
    assert padded.getpixel((0, 0)) == (1, 2, 3)
    assert padded.getpixel((0, 1)) == (9, 9, 9)
    assert padded.getpixel((0, 3)) == (1, 2, 3)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_encoders(tmp_path: Path, kind: str) -> None:
    modality = ImageModality.from_source(save_tiny_vision(tmp_path, kind))
    encoder = modality.load_encoder(torch.float32)
    raw = modality.load(noise(40, 20))
    values, mask, breaks = modality.encode(encoder, modality.collate([raw, raw]))
    assert values.shape == (2, modality.num_positions, modality.width)
    assert modality.positions(raw) == modality.num_positions
    assert mask is None
    assert breaks is None


def test_class_token_is_kept_on_request(tmp_path: Path) -> None:
    folder = save_tiny_vision(tmp_path)
    modality = ImageModality.from_source(folder, settings={"select": "cls_patch"})
    assert modality.num_positions == ImageModality.from_source(folder).num_positions + 1


def test_wrong_settings_and_sources(tmp_path: Path) -> None:
    folder = save_tiny_vision(tmp_path / "clip")
    with pytest.raises(UsageError, match="hidden states"):
        ImageModality.from_source(folder, settings={"layer": -9})
    with pytest.raises(RecipeError, match="Did you mean 'aspect'"):
        ImageModality.from_source(folder, settings={"aspekt": "pad"})
    with pytest.raises(CheckpointError, match="No vision encoder"):
        ImageModality.from_source(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="no class token"):
        ImageModality.from_source(save_tiny_vision(tmp_path / "siglip", "siglip"), settings={"select": "cls_patch"})


PINPOINTS = [(56, 112), (112, 56), (112, 112), (168, 56), (56, 168)]


@pytest.mark.parametrize("size", [(100, 40), (40, 100), (91, 90), (300, 31), (20, 20), (57, 113)])
def test_tiles_equal_transformers(size: tuple[int, int]) -> None:
    image = noise(*size)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=[[h, w] for w, h in PINPOINTS],
    )
    expected = processor(images=[image], return_tensors="pt")["pixel_values"][0]
    tiles, grid = cut_tiles(image, PINPOINTS, 56)
    assert len(tiles) == grid[0] * grid[1] + 1
    plain = LlavaNextImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    whole = plain(images=[tiles[0]], image_grid_pinpoints=[[56, 56]], return_tensors="pt")["pixel_values"][0, 0]
    assert len(tiles) == len(expected)
    torch.testing.assert_close(whole, expected[0], atol=0.03, rtol=0)  # one rounding of 8-bit resampling apart at most


@pytest.mark.parametrize("size", [(100, 40), (40, 100), (112, 112), (300, 31)])
def test_layout_equals_transformers_packing(size: tuple[int, int]) -> None:
    side = 4
    width, height = best_resolution(size, PINPOINTS)
    grid = (height // 56, width // 56)
    tiles = torch.arange((grid[0] * grid[1] + 1) * side * side)
    image = tiles[side * side :].view(*grid, side, side).permute(0, 2, 1, 3).reshape(1, grid[0] * side, grid[1] * side)
    expected = unpad_image(image, (size[1], size[0]))[0]
    rows = torch.cat([expected, torch.full((len(expected), 1), BREAK)], dim=1).flatten()
    layout = lay_out(size, grid, side, "spatial_unpad", class_token=False)
    assert layout.tolist() == [*range(side * side), *rows.tolist()]


def test_tiles_of_several_pictures_point_into_one_batch(tmp_path: Path) -> None:
    folder = save_tiny_vision(tmp_path)
    size = ImageModality.from_source(folder).encoder_config.image_size
    pinpoints = [(size, 2 * size), (2 * size, size)]
    modality = ImageModality.from_source(folder, settings={"aspect": "anyres", "pinpoints": pinpoints})
    raws = [modality.load(noise(30, 60)), modality.load(noise(60, 31))]
    encoder = modality.load_encoder(torch.float32)
    together, mask, breaks = modality.encode(encoder, modality.collate(raws))
    assert mask is not None
    assert breaks is not None
    for index, raw in enumerate(raws):
        alone, _, _ = modality.encode(encoder, modality.collate([raw]))
        real = mask[index] & ~breaks[index]
        kept = raw["layout"] >= 0
        torch.testing.assert_close(together[index][real], alone[0][kept], atol=1e-5, rtol=1e-5)
        assert int(mask[index].sum()) == modality.positions(raw)
    assert PADDING < BREAK < 0


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_pooled_output_is_the_encoders_own(kind: str, tmp_path: Path) -> None:
    modality = ImageModality.from_source(save_tiny_vision(tmp_path, kind), settings={"select": "pool"})
    encoder = modality.load_encoder(torch.float32)
    inputs = modality.collate([modality.load(noise(20, 12)), modality.load(noise(9, 16))])
    with torch.no_grad():
        values, mask, breaks = modality.encode(encoder, inputs)
        expected = encoder(inputs["pixel_values"]).pooler_output
    assert (mask, breaks, modality.num_positions) == (None, None, 1)
    assert torch.equal(values, expected.unsqueeze(1))


def test_tiles_cannot_be_pooled(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Tiles"):
        ImageModality.from_source(save_tiny_vision(tmp_path), settings={"select": "pool", "aspect": "anyres"})
