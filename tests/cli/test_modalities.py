"""Sounds, videos and documents from the command line: trained, asked about by option, message and row."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from mmtune.testing.encoders import (
    animation,
    save_tiny_bert,
    save_tiny_clap,
    save_tiny_embedding,
    save_tiny_whisper,
    save_tiny_xclip,
    tone,
)
from tests.cli.conftest import Run
from tests.tiny import save_tiny_lm, save_tiny_vision

SHORT = ("--max-new-tokens", 3, "--json")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with a picture, a tone, a video and a document."""
    folder = tmp_path / "media"
    folder.mkdir()
    Image.new("RGB", (12, 16), "red").save(folder / "a.png")
    (folder / "a.wav").write_bytes(tone(440, 0.3))
    (folder / "a.gif").write_bytes(animation(0))
    (folder / "a.txt").write_text("A cat sat there. It ran.")
    return folder


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that takes five kinds of media, two of them by the names of published checkpoints."""
    from mmtune.model.build import build_model

    folder = tmp_path_factory.mktemp("many")
    encoders = {
        "image": save_tiny_vision(folder / "clip"),
        "audio_whisper": save_tiny_whisper(folder / "whisper"),
        "video_xclip": save_tiny_xclip(folder / "xclip"),
        "document": save_tiny_bert(folder / "bert"),
        "embedding": {"settings": {"width": 3}},
    }
    model, processor = build_model(base=save_tiny_lm(folder / "lm"), encoders=encoders, method="llava")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


def test_each_option_goes_to_the_modality_that_takes_it(mmtune: Run, many: Path, media: Path) -> None:
    options = ("--image", media / "a.png", "--audio", media / "a.wav", "--video", media / "a.gif")
    found = mmtune("generate", "--model", many, *options, "--document", media / "a.txt", *SHORT)
    assert found.code == 0, found.err
    prompt = found.json["prompt"]
    assert "<image>\n<speech>\n<video>\n<document>\n" in prompt
    assert found.json["prompt_tokens"] > 4 + 1 + 1 + 2


def test_messages_in_all_their_forms(mmtune: Run, many: Path, media: Path) -> None:
    texts = "<speech> <document> <embedding> <video>?"
    lists = {
        "speech_audios": ["a.wav"],
        "documents": ["Text itself."],
        "embeddings": [[0.1, 0.2, 0.3]],
        "videos": [["a.png", "a.png"]],
    }
    parts = [
        {"type": "audio_url", "audio_url": {"url": "a.wav"}},
        {"type": "document", "text": "Text itself."},
        {"type": "embedding", "embedding": [0.1, 0.2, 0.3]},
        {"type": "video", "video": ["a.png", "a.png"]},
        {"type": "text", "text": "?"},
    ]
    bodies = [
        {"messages": [{"role": "user", "content": texts}], **lists},
        {"messages": [{"role": "user", "content": texts}], **lists, "documents": {"path": "a.txt"}},
        {"messages": [{"role": "user", "content": parts}]},
    ]
    for body in bodies:
        (media / "m.json").write_text(json.dumps(body))
        found = mmtune("generate", "--model", many, "--messages", media / "m.json", *SHORT)
        assert found.code == 0, found.err
        for marker in ("<speech>", "<document>", "<embedding>", "<video>"):
            assert found.json["prompt"].count(marker) == 1


def test_batches_answer_what_they_can(mmtune: Run, many: Path, media: Path) -> None:
    rows = [
        {"id": "general", "prompt": "?", "audios": ["a.wav"], "images": ["a.png"]},
        {"id": "own", "prompt": "<speech>?", "speech_audios": {"path": "a.wav"}},
        {"id": "text", "prompt": "no media, but <sound>"},
        {"id": "gone", "prompt": "?", "audios": ["gone.wav"]},
        {"id": "no sound", "prompt": "?", "audios": ["a.png"]},
        {"id": "wrong width", "prompt": "?", "embeddings": [[1.0, 2.0]]},
        {"id": "no such modality", "prompt": "?", "sounds": ["a.wav"]},
        {"id": "empty", "prompt": "?", "documents": [" "]},
    ]
    (media / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = mmtune("generate", "--model", many, "--batch", media / "b.jsonl", "--output", media / "o.jsonl", *SHORT)
    assert (found.json["answered"], found.json["failed"]) == (3, 5), found.err
    errors = [json.loads(line).get("error") for line in (media / "o.jsonl").read_text().splitlines()]
    assert [None if error is None else error["exit"] for error in errors] == [None, None, None, 3, 3, 3, 4, 3]


def test_a_model_says_what_it_takes(mmtune: Run, checkpoint: Path, media: Path) -> None:
    for option, name in (("--audio", "a.wav"), ("--video", "a.gif"), ("--document", "a.txt")):
        found = mmtune("generate", "--model", checkpoint, option, media / name, *SHORT)
        assert found.error["exit"] == 4
        assert f"no modality '{option[2:]}'; it has: image" in found.error["message"]
    assert mmtune("generate", "--model", checkpoint, "--audio", media / "none.wav", "--json").error["exit"] == 3


def test_standard_input_may_be_a_sound(mmtune: Run, many: Path, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = mmtune("generate", "--model", many, "--audio", media / "a.wav", *SHORT).json
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO((media / "a.wav").read_bytes())))
    assert mmtune("generate", "--model", many, "--audio", "-", *SHORT).json["token_ids"] == named["token_ids"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    assert mmtune("generate", "--model", many, "--audio", "-", *SHORT).error["where"] == "--audio -"


def test_pictures_and_tones_are_trained_together(mmtune: Run, media: Path, tmp_path: Path) -> None:
    rows = []
    for index in range(4):
        shown = {"images": ["a.png"]} if index != 1 else {}
        heard = {"audios": ["a.wav"]} if index != 2 else {}
        markers = "<image>\n" * bool(shown) + "<audio>\n" * bool(heard)
        talk = [{"role": "user", "content": f"{markers}What is it?"}, {"role": "assistant", "content": "a cat"}]
        rows.append({"id": str(index), "messages": talk, **shown, **heard})
    (media / "data.json").write_text(json.dumps(rows))
    whisper = save_tiny_whisper(tmp_path / "whisper")
    chosen = ("--set", f"model.encoders.audio={{source: {whisper}, settings: {{pool: 10}}}}")
    run = ("--method", "llava", "--max-steps", 3, "--batch-size", 2, "--output", "run", *chosen)
    found = mmtune("finetune", "--data", media / "data.json", *run, "--json")
    assert found.code == 0, found.err
    assert found.json["status"] == "completed"
    asked = ("--image", media / "a.png", "--audio", media / "a.wav")
    answer = mmtune("generate", "--model", Path("run/model"), *asked, *SHORT)
    assert answer.code == 0, answer.err
    assert "<image>\n<audio>" in answer.json["prompt"]


def test_precomputed_vectors_need_no_source(mmtune: Run, media: Path) -> None:
    talk = [{"role": "user", "content": "<embedding> What is it?"}, {"role": "assistant", "content": "a cat"}]
    rows = [{"id": str(index), "messages": talk, "embeddings": [[0.1 * index, 1.0, -1.0]]} for index in range(4)]
    (media / "data.json").write_text(json.dumps(rows))
    width = ("--set", "model.encoders.embedding.settings.width=3", "--set", "model.vision=null")
    run = ("--method", "llava", "--max-steps", 2, "--batch-size", 2, "--output", "run", *width)
    found = mmtune("finetune", "--data", media / "data.json", *run, "--json")
    assert found.code == 0, found.err
    (media / "m.json").write_text(json.dumps({"messages": talk[:1], "embeddings": [[0.5, 0.5, 0.5]]}))
    assert mmtune("generate", "--model", Path("run/model"), "--messages", media / "m.json", *SHORT).code == 0
    nothing = mmtune(
        "finetune",
        "--data",
        media / "data.json",
        *run[:-4],
        *width[2:],
        "--set",
        "model.encoders.embedding={}",
        "--json",
    )
    assert nothing.error["exit"] == 2
    assert "width" in nothing.error["message"]


def test_prepared_data_keep_all_media(mmtune: Run, media: Path) -> None:
    markers = "<speech><sound><video><video><document><embedding><image>"
    talk = [{"role": "user", "content": f"{markers}?"}, {"role": "assistant", "content": "yes"}]
    lists = {
        "speech_audios": ["a.wav"], "sounds": ["a.wav"], "videos": ["a.gif", ["a.png", "a.png"]],
        "documents": ["Text itself."], "embeddings": [[1.0, 2.0]], "images": ["a.png"],
    }  # fmt: skip
    missing = {"id": "missing", "messages": talk, **lists, "sounds": ["none.wav"]}
    (media / "data.json").write_text(json.dumps([{"id": "good", "messages": talk, **lists}, missing]))
    options = ("--output", "prepared", "--max-bad-fraction", 0.5, "--json")
    found = mmtune("prepare-data", media / "data.json", *options)
    assert found.code == 0, found.err
    assert (found.json["rows"], found.json["reasons"]) == (1, {"media_missing": 1})
    from mmtune.data.dataset import load_samples

    items = {item.modality: item.uri for item in load_samples("prepared")[0].media if item.modality != "video"}
    assert items["document"] == {"text": "Text itself."}
    assert items["embedding"] == [1.0, 2.0]
    assert Path(items["audio_whisper"]) == Path(items["audio_clap"]) == media / "a.wav"
    videos = [item.uri for item in load_samples("prepared")[0].media if item.modality == "video"]
    assert videos == [str(media / "a.gif"), [str(media / "a.png")] * 2]


def test_a_self_contained_folder_moves(many: Path, media: Path, tmp_path: Path) -> None:
    import shutil

    import torch

    from mmtune.model.build import build_model, load

    encoders = {
        "audio_clap": save_tiny_clap(tmp_path / "clap"),
        "document_gte": save_tiny_bert(tmp_path / "bert"),
        "embedding": save_tiny_embedding(tmp_path / "vectors"),
    }
    model, processor = build_model(base=save_tiny_lm(tmp_path / "lm"), encoders=encoders, method="llava")
    model.owned_encoders, model.owns_language_model = set(encoders), True
    model.save_pretrained(tmp_path / "whole")
    from mmtune.model.build import make_processor

    for name in encoders:
        model.modalities[name].source = str(tmp_path / "whole" / "encoders" / name)
    make_processor(model, processor.tokenizer).save_pretrained(tmp_path / "whole")
    for folder in ("clap", "bert", "vectors", "lm"):
        shutil.rmtree(tmp_path / folder)
    shutil.move(tmp_path / "whole", tmp_path / "elsewhere")
    again, reader = load(tmp_path / "elsewhere", device="cpu")
    asked = {"sounds": [tone(300)], "documents": ["A cat."], "embeddings": [torch.ones(6)]}
    text = "<sound><document><embedding>?"
    with torch.no_grad():
        expected = model.eval()(**processor(text, **asked)).logits
        torch.testing.assert_close(again(**reader(text, **asked)).logits, expected, atol=1e-5, rtol=0)
