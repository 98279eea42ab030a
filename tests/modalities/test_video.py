"""Videos: which frames are taken, every form and fault, and features that equal those of the encoders themselves."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import XCLIPModel

from mmtune.core.errors import CheckpointError, MediaError, MissingExtraError, NotPossibleError, RecipeError
from mmtune.modalities import MODALITIES, frames
from mmtune.modalities.frames import choose_frames, open_frames
from mmtune.modalities.image import ImageModality
from mmtune.modalities.video import VideoModality
from mmtune.testing.encoders import animation, save_tiny_bert, save_tiny_xclip, tone
from tests.tiny import save_tiny_vision

GRAYS = [20 * index for index in range(12)]


def movie(grays: list[int] = GRAYS, *, format: str = "mp4", codec: str = "mpeg4") -> bytes:
    """Frames of one gray each, so that a frame tells which it is."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for gray in grays:
            picture = np.full((16, 32, 3), gray, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def seen(
    item: object, wanted: int = 4, sampling: str = "uniform", *, seed: int = 0, max_seconds: float = 60
) -> list[int]:
    """The gray of each frame, rounded to what it was."""
    taken = open_frames(item, wanted, sampling, seed, max_seconds=max_seconds)  # type: ignore[arg-type]
    return [20 * round(np.asarray(frame).mean() / 20) for frame in taken]


def test_uniform_frames_are_the_middles_of_equal_parts() -> None:
    assert choose_frames(12, 4, "uniform", 0) == [1, 4, 7, 10]
    assert choose_frames(8, 8, "uniform", 0) == list(range(8))
    assert choose_frames(3, 4, "uniform", 0) == [0, 1, 1, 2]
    assert choose_frames(1, 3, "consecutive", 0) == [0, 0, 0]


def test_consecutive_frames_are_neighbours_at_a_seeded_place() -> None:
    drawn = {tuple(choose_frames(100, 8, "consecutive", seed)) for seed in range(20)}
    assert len(drawn) > 10
    for chosen in drawn:
        assert list(chosen) == list(range(chosen[0], chosen[0] + 8))
        assert 0 <= chosen[0] < chosen[-1] < 99
    assert choose_frames(100, 8, "consecutive", 3) == choose_frames(100, 8, "consecutive", 3)


@pytest.mark.parametrize(("format", "codec"), [("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4")])
def test_files_bytes_and_lists_of_pictures_show_the_same(tmp_path: Path, format: str, codec: str) -> None:
    content = movie(format=format, codec=codec)
    (tmp_path / "a.video").write_bytes(content)
    pictures = [Image.new("RGB", (8, 8), (gray,) * 3) for gray in GRAYS]
    for item in (content, tmp_path / "a.video", {"path": str(tmp_path / "a.video")}, pictures):
        assert seen(item) == [20, 80, 140, 200]
    assert seen(content, 3, "consecutive", seed=1) == seen(pictures, 3, "consecutive", seed=1)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animations_need_no_extra(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "find_spec", lambda name: None if name == "av" else find_spec(name))
    pictures = [Image.new("RGB", (8, 8), (gray,) * 3) for gray in GRAYS]
    file = io.BytesIO()
    options = {"lossless": True} if format == "WEBP" else {}
    pictures[0].save(file, format, save_all=True, append_images=pictures[1:], duration=100, **options)
    assert seen(file.getvalue()) == [20, 80, 140, 200]
    with pytest.raises(MissingExtraError) as error:
        seen(movie())
    assert error.value.fix == 'pip install "mmtune[video]"'


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (b"", "empty"),
        (b"no video at all" * 50, "Not a video"),
        (movie()[:200], "Not a video"),
        (animation(0)[:40], "damaged"),
        (tone(440), "no video"),
        ([], "list of frames is empty"),
        ([b"no picture"], "Not a picture"),
        (7, "int is no video"),
        ("none.mp4", "No such video"),
        (".", "A folder"),
        ("http://x.y/z.mp4", "URLs"),
    ],
)
def test_what_is_no_video_is_named(item: object, words: str) -> None:
    with pytest.raises(MediaError, match=words) as error:
        seen(item)
    assert error.value.fix


def test_long_videos_are_refused() -> None:
    with pytest.raises(MediaError, match=r"1 s long, the limit is 0\.5 s"):
        seen(movie(), max_seconds=0.5)


def features(modality: VideoModality, *items: object) -> torch.Tensor:
    encoder = modality.load_encoder(torch.float32)
    with torch.no_grad():
        values, mask, _ = modality.encode(encoder, modality.collate([modality.load(item) for item in items]))
    assert mask is None
    return values


def test_frames_go_through_an_image_encoder_one_by_one(tmp_path: Path) -> None:
    for kind in ("clip", "siglip", "dinov2"):
        folder = save_tiny_vision(tmp_path / kind, kind)
        modality = VideoModality.from_source(folder, settings={"frames": 3})
        picture = ImageModality.from_source(folder)
        pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
        with torch.no_grad():
            each = [picture.load(one) for one in pictures]
            expected, _, _ = picture.encode(picture.load_encoder(torch.float32), picture.collate(each))
        found = features(modality, pictures, pictures[::-1])
        assert found.shape == (2, modality.num_positions, modality.width)
        torch.testing.assert_close(found[0], expected.flatten(0, 1), atol=1e-5, rtol=0)
        pooled = VideoModality.from_source(folder, settings={"frames": 3, "pool": "frame"})
        torch.testing.assert_close(features(pooled, pictures)[0], expected.mean(1), atol=1e-5, rtol=0)


def test_xclip_as_published_is_what_the_whole_model_says_of_the_video(tmp_path: Path) -> None:
    folder = save_tiny_xclip(tmp_path)
    published = MODALITIES.load("video_xclip").from_source(folder)
    assert (published.marker, published.data_key, published.settings.sampling) == ("<video>", "videos", "consecutive")
    model = XCLIPModel.from_pretrained(folder).eval()
    videos = [animation(0), movie()]
    pixels = torch.stack([published.load(video)["pixel_values"] for video in videos])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[1, 2]]), pixel_values=pixels).video_embeds
    torch.testing.assert_close(features(published, *videos)[:, 0], expected, atol=1e-6, rtol=0)
    assert VideoModality.from_source(folder).settings.sampling == "uniform"


def test_wrong_sources_and_settings(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No vision encoder"):
        VideoModality.from_source(save_tiny_bert(tmp_path / "bert"))
    vision = save_tiny_vision(tmp_path / "clip")
    with pytest.raises(NotPossibleError, match="cannot read"):
        MODALITIES.load("video_xclip").from_source(vision)
    with pytest.raises(RecipeError, match="Did you mean 'frames'"):
        VideoModality.from_source(vision, settings={"frame": 2})
