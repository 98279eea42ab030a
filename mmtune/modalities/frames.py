"""Frames of videos: which ones, and how they come out of files, animations and lists of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, ImageSequence

from mmtune.core.errors import MediaError, MissingExtraError
from mmtune.modalities.opening import open_file, place_of
from mmtune.modalities.pictures import open_picture

Sampling = Literal["uniform", "consecutive"]

_FORMS = "a path, data URI or bytes of a video, or a list of pictures"
_ANIMATIONS = (b"GIF8", b"\x89PNG", b"RIFF")  # RIFF is WebP here, AVI otherwise


def choose_frames(available: int, wanted: int, sampling: Sampling, seed: int) -> list[int]:
    """Which frames to look at, in order.

    Args:
        available: Frames of the video, at least one. With fewer than wanted some are taken twice.
        sampling: ``uniform`` takes the middle of equal parts; ``consecutive`` takes neighbours that end at a place
            drawn by the seed, as multi_token does without a seed.
    """
    if sampling == "uniform" or available <= wanted:
        return [(2 * index + 1) * available // (2 * wanted) for index in range(wanted)]
    end = int(np.random.default_rng([seed, available]).integers(wanted, available))
    return list(range(end - wanted, end))


def open_frames(item: Any, wanted: int, sampling: Sampling, seed: int, *, max_seconds: float) -> list[Image.Image]:
    """So many frames of a video as upright RGB pictures.

    Args:
        item: A file that PyAV reads, an animated GIF, PNG or WebP (without PyAV), or a list of pictures.

    Raises:
        MediaError: Missing, empty, damaged, without frames, or too long.
        MissingExtraError: PyAV is not installed.
    """
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path")
    if isinstance(item, (list, tuple)):
        if not item:
            raise MediaError("The list of frames is empty.", fix=f"give {_FORMS}")
        chosen = choose_frames(len(item), wanted, sampling, seed)
        opened = {index: open_picture(item[index]) for index in set(chosen)}
        return [opened[index] for index in chosen]
    where = place_of(item, "video")
    with open_file(item, "video", forms=_FORMS) as file:
        head = file.read(12)
        file.seek(0)
        if head.startswith(_ANIMATIONS) and (head[:4] != b"RIFF" or head[8:] == b"WEBP"):
            return _from_animation(file, wanted, sampling, seed, where)
        return _from_video(file, wanted, sampling, seed, where, max_seconds)


def _from_animation(file: BinaryIO, wanted: int, sampling: Sampling, seed: int, where: str) -> list[Image.Image]:
    try:
        with Image.open(file) as animation:
            chosen = choose_frames(getattr(animation, "n_frames", 1), wanted, sampling, seed)
            taken = {
                index: frame.convert("RGB")
                for index, frame in enumerate(ImageSequence.Iterator(animation))
                if index in chosen
            }
            return [taken[index] for index in chosen]
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, Image.DecompressionBombError) as error:
        raise MediaError(f"The animation is damaged: {error}", where=where, fix="save it again") from error


def _from_video(
    file: BinaryIO, wanted: int, sampling: Sampling, seed: int, where: str, max_seconds: float
) -> list[Image.Image]:
    if find_spec("av") is None:
        raise MissingExtraError("Reading videos", "video")
    import av

    try:
        count = _count(file, where, max_seconds)
        file.seek(0)
        chosen = choose_frames(count, wanted, sampling, seed)
        taken: dict[int, Image.Image] = {}
        for index, frame in enumerate(_decode(file)):
            if index in chosen:
                picture = frame.to_image()
                taken[index] = picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
            if index == chosen[-1]:
                break
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise MediaError(
            f"Not a video, or a damaged one: {error}", where=where, fix="give an MP4, MKV, WebM, MOV, AVI or GIF"
        ) from error
    return [taken[index] for index in chosen]


def _count(file: BinaryIO, where: str, max_seconds: float) -> int:
    """Frames that can be decoded; what a header says of their number is not to be trusted."""
    import av

    with av.open(file) as container:
        if not container.streams.video:
            raise MediaError("The file holds no video.", where=where, fix="give a file with pictures in it")
        seconds = (container.duration or 0) / av.time_base
    if seconds > max_seconds:
        raise MediaError(
            f"The video is {seconds:.0f} s long, the limit is {max_seconds:g} s.",
            where=where,
            fix="cut it, or raise settings.max_seconds of the encoder",
        )
    file.seek(0)
    count = sum(1 for _ in _decode(file))
    if not count:
        raise MediaError("The video has no frames.", where=where, fix="copy it again")
    return count


def _decode(file: BinaryIO) -> Iterator[Any]:
    import av

    with av.open(file) as container:
        container.streams.video[0].thread_type = "AUTO"
        yield from container.decode(video=0)


def prepared_frames(processor: Any, frames: Sequence[Image.Image]) -> Any:
    """Frames through a preparation for pictures or for videos, ``[F, 3, H, W]``."""
    pixels = processor(list(frames), return_tensors="pt")["pixel_values"]
    return pixels.flatten(0, -4)
