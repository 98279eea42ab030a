"""Opening sounds from anywhere a user may have them, as mono samples at the rate that an encoder wants."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mmtune.core.errors import MediaError, MissingExtraError
from mmtune.modalities.opening import open_file, place_of

Samples = NDArray[np.float32]

_FORMS = "a path, data URI, bytes, or {array, sampling_rate}"
# libsndfile reads what is left of a truncated WAV and says so in its log alone. Streams write a size of 4 GB or none.
_TRUNCATED = re.compile(r"^\s*data\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_STREAMED = 0x7FFFFF00


def open_sound(item: Any, rate: int, *, max_seconds: float) -> Samples:
    """Read a sound as mono at a sampling rate: channels are averaged, then resampled by soxr in high quality.

    Args:
        item: A path, ``data:`` URI or bytes of WAV, FLAC, OGG or MP3; or ``{array, sampling_rate}`` with samples
            ``[T]``, ``[T, channels]`` or ``[channels, T]``; or ``{path}`` or ``{bytes}``.
        rate: Samples a second of the result.
        max_seconds: Longest sound that is read.

    Raises:
        MediaError: Missing, empty, truncated, without samples, not finite, too long, or no sound.
        MissingExtraError: soundfile or soxr is not installed.
    """
    samples, given = _read(item, max_seconds)
    return samples.astype(np.float32) if given == rate else _resampled(samples, given, rate)


def probe_sound(item: Any) -> None:
    """Read a sound of any length and forget it.

    Raises:
        MediaError, MissingExtraError: As :func:`open_sound`.
    """
    _read(item, math.inf)


def _read(item: Any, max_seconds: float) -> tuple[NDArray[np.float64], int]:
    """Mono samples as they are stored, and how many there are in a second."""
    for module in ("soundfile", "soxr"):
        if find_spec(module) is None:
            raise MissingExtraError("Reading sounds", "audio")
    where = place_of(item, "sound")
    if isinstance(item, Mapping) and item.get("array") is None:
        item = item.get("bytes") or item.get("path")
        where = place_of(item, "sound")
    samples, given = _from_array(item, where) if isinstance(item, Mapping) else _from_file(item, where, max_seconds)
    if len(samples) > max_seconds * given:
        raise _too_long(len(samples) / given, max_seconds, where)
    if not len(samples):
        raise MediaError("The sound has no samples.", where=where, fix="record it again or remove it")
    if not np.isfinite(samples).all():
        raise MediaError("The sound holds values that are not finite.", where=where, fix="write it again")
    return samples, given


def _resampled(samples: NDArray[np.float64], given: int, rate: int) -> Samples:
    """As librosa does it: by soxr, then exactly as long as the rates say, rounded up."""
    import soxr

    found = soxr.resample(samples, given, rate, quality="HQ")
    length = math.ceil(len(samples) * rate / given)
    return cast(Samples, np.pad(found[:length], (0, max(0, length - len(found)))).astype(np.float32))


def _from_array(item: Mapping[str, Any], where: str) -> tuple[NDArray[np.float64], int]:
    rate = item.get("sampling_rate")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or rate <= 0 or rate != int(rate):
        raise MediaError(
            f"The samples have the sampling rate {rate!r}.", where=where, fix='give "sampling_rate", for example 16000'
        )
    try:
        array = np.asarray(item["array"], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MediaError(f"The samples are no numbers: {error}", where=where, fix="give a list of numbers") from error
    if array.ndim == 2:  # whichever axis is the short one holds the channels
        array = array.mean(axis=int(np.argmin(array.shape)))
    if array.ndim != 1:
        raise MediaError(f"Samples of shape {array.shape}.", where=where, fix="give [T] or [T, channels]")
    return np.ascontiguousarray(array), int(rate)


def _from_file(item: Any, where: str, max_seconds: float) -> tuple[NDArray[np.float64], int]:
    import soundfile

    with open_file(item, "sound", forms=_FORMS) as file:
        try:
            with soundfile.SoundFile(file) as sound:
                _refuse_truncated(sound.extra_info, where)
                if sound.frames > max_seconds * sound.samplerate:
                    raise _too_long(sound.frames / sound.samplerate, max_seconds, where)
                frames = sound.read(dtype="float32", always_2d=True)  # [T, channels]
                announced, rate = sound.frames, int(sound.samplerate)
        except soundfile.LibsndfileError as error:
            raise MediaError(
                f"Not a sound, or a damaged one: {error.error_string}", where=where, fix="give a WAV, FLAC, OGG or MP3"
            ) from error
    if len(frames) < announced:
        raise _truncated(len(frames), announced, where)
    return frames.mean(axis=1, dtype=np.float64), rate


def _refuse_truncated(log: str, where: str) -> None:
    found = _TRUNCATED.search(log)
    if found is None:
        return
    announced, there = int(found[1]), int(found[2])
    if there < announced < _STREAMED:
        raise _truncated(there, announced, where)


def _truncated(there: int, announced: int, where: str) -> MediaError:
    return MediaError(
        f"The sound is truncated: {there} of {announced} are there.", where=where, fix="copy it again or remove it"
    )


def _too_long(seconds: float, limit: float, where: str) -> MediaError:
    return MediaError(
        f"The sound is {seconds:.0f} s long, the limit is {limit:g} s.",
        where=where,
        fix="cut it, or raise settings.max_seconds of the encoder",
    )
