"""Sounds, videos, documents and vectors in rows: their forms, and what is found out about them before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmtune.data.dataset import load_samples
from mmtune.data.items import settled_item, settled_list
from mmtune.data.messages import RowError, media_lists
from mmtune.data.prepare import prepare
from mmtune.data.sample import Sample
from mmtune.testing.encoders import animation, tone


@pytest.mark.parametrize(
    ("modality", "given", "expected"),
    [
        ("audio", "a.wav", "a.wav"),
        ("audio", {"path": "a.wav"}, "a.wav"),
        ("audio_whisper", {"url": "a.wav"}, "a.wav"),
        ("audio", {"bytes": b"x", "path": None}, b"x"),
        ("audio", {"array": [0.5], "sampling_rate": 8, "path": None}, {"array": [0.5], "sampling_rate": 8}),
        ("audio", {"data": "AAAA", "format": "mp3"}, "data:audio/mp3;base64,AAAA"),
        ("document", "Some text", {"text": "Some text"}),
        ("document_gte", {"text": "Some text"}, {"text": "Some text"}),
        ("document", {"path": "a.txt"}, "a.txt"),
        ("imagebind", "dog.WAV", "dog.WAV"),
        ("imagebind", "a dog", {"text": "a dog"}),
        ("video", ["1.png", "2.png"], ["1.png", "2.png"]),
        ("embedding", "a.npy", "a.npy"),
        ("embedding", [1, 2.5], [1, 2.5]),
        ("embedding", {"path": "a.npz", "key": "k", "row": 0}, {"path": "a.npz", "key": "k", "row": 0}),
        ("series", [[1, "whatever"]], [[1, "whatever"]]),
        ("series", {"any": "thing"}, {"any": "thing"}),
    ],
)
def test_forms_of_items(modality: str, given: Any, expected: Any) -> None:
    assert settled_item(modality, given, "key") == expected


@pytest.mark.parametrize(
    ("modality", "given", "reason"),
    [
        ("image", 7, "bad_media_field"),
        ("image", ["a.png"], "bad_media_field"),
        ("audio", {"array": None}, "bad_media_field"),
        ("audio", [0.1, 0.2], "bad_media_field"),
        ("video", [], "bad_media_field"),
        ("video", ["1.png", ""], "bad_media_field"),
        ("embedding", ["1"], "bad_media_field"),
        ("document", " ", "empty_media_path"),
        ("audio", {"path": ""}, "bad_media_field"),
        ("video", {"url": "a.mp4", "start_time": 3}, "unsupported_item"),
        ("audio", {"dataset_args": {}, "idx": 0}, "unsupported_item"),
    ],
)
def test_what_is_no_item(modality: str, given: Any, reason: str) -> None:
    with pytest.raises(RowError) as error:
        settled_item(modality, given, "key")
    assert error.value.reason == reason


@pytest.mark.parametrize(("modality", "key"), [("document_gte", "documents"), ("imagebind", "imagebinds")])
def test_a_text_in_brackets_is_a_text(modality: str, key: str) -> None:
    assert media_lists({key: "[citation needed]"}, {key: modality}) == {modality: [{"text": "[citation needed]"}]}


def test_a_list_written_as_text_is_refused_where_texts_are_paths() -> None:
    with pytest.raises(RowError) as error:
        media_lists({"sounds": "['a.wav']"})
    assert error.value.reason == "list_as_text"


def test_one_vector_is_one_item() -> None:
    assert settled_list("embedding", [1.0, 2.0], "embeddings") == [[1.0, 2.0]]
    assert settled_list("embedding", [[1.0, 2.0]], "embeddings") == [[1.0, 2.0]]


def test_values_survive_json() -> None:
    sample = Sample.from_json(json.loads(json.dumps(SAMPLE.to_json())))
    assert sample == SAMPLE


def row(name: str, key: str, marker: str, item: Any) -> dict[str, Any]:
    talk = [{"role": "user", "content": f"{marker} What?"}, {"role": "assistant", "content": "This."}]
    return {"id": name, "messages": talk, key: [item]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Good rows and, for each, a damaged one that only a look inside finds out about."""
    (tmp_path / "good.wav").write_bytes(tone(440))
    (tmp_path / "bad.wav").write_bytes(tone(440)[:3000])
    (tmp_path / "good.gif").write_bytes(animation(0))
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 20)
    (tmp_path / "good.txt").write_text("Text.")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    np.save(tmp_path / "good.npy", np.ones(3))
    (tmp_path / "bad.npy").write_bytes(b"no array")
    rows = [
        row("sound", "audios", "<audio>", "good.wav"),
        row("speech", "speech_audios", "<speech>", {"path": "bad.wav"}),
        row("samples", "sounds", "<sound>", {"array": [0.1, 0.2], "sampling_rate": 8000}),
        row("no samples", "sounds", "<sound>", {"array": [], "sampling_rate": 8000}),
        row("video", "videos", "<video>", "good.gif"),
        row("bad video", "videos", "<video>", "bad.mp4"),
        row("document", "documents", "<document>", {"path": "good.txt"}),
        row("bad document", "documents", "<document>", {"path": "bad.txt"}),
        row("vectors", "embeddings", "<embedding>", {"path": "good.npy", "row": 0}),
        row("bad vectors", "embeddings", "<embedding>", "bad.npy"),
        row("outside", "embeddings", "<embedding>", {"path": "../../etc/a.npy", "row": 0}),
        row("frames outside", "videos", "<video>", ["/etc/passwd"]),
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    return path


def test_a_look_inside_finds_what_is_damaged(data: Path, tmp_path: Path) -> None:
    found = prepare([data], tmp_path / "stat", max_bad_fraction=1.0)
    assert found["reasons"] == {"path_outside": 2}
    found = prepare([data], tmp_path / "decode", max_bad_fraction=1.0, check_media="decode")
    assert found["reasons"] == {"media_damaged": 5, "path_outside": 2}
    assert [sample.id for sample in load_samples(tmp_path / "decode")] == [
        "sound", "samples", "video", "document", "vectors",
    ]  # fmt: skip


def test_prepared_and_raw_rows_hold_the_same_items(data: Path, tmp_path: Path) -> None:
    prepare([data], tmp_path / "prepared", max_bad_fraction=1.0)
    both = [load_samples(path, max_bad_fraction=1.0) for path in (tmp_path / "prepared", data)]
    items = [{sample.id: [str(item.uri) for item in sample.media] for sample in table} for table in both]
    assert items[0] == items[1]
    assert items[0]["vectors"] == [str({"path": str(tmp_path / "good.npy"), "row": 0})]


def test_embedded_media_travel_with_the_shards(data: Path, tmp_path: Path) -> None:
    prepare([data], tmp_path / "prepared", max_bad_fraction=1.0, embed_media=True)
    (tmp_path / "good.wav").unlink()
    sample = next(sample for sample in load_samples(tmp_path / "prepared") if sample.id == "sound")
    assert sample.media[0].uri == tone(440)


SAMPLE = Sample.from_json(
    {
        "id": "1",
        "turns": [
            {
                "role": "user",
                "parts": [
                    {"type": "document", "value": {"text": "Text."}},
                    {"type": "embedding", "value": [1.0, 2.0]},
                    {"type": "audio", "uri": "a.wav"},
                ],
            }
        ],
    }
)
