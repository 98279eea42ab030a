"""`mmtune generate`: prompts, messages, batches, standard input, and what each result holds."""

from __future__ import annotations

import base64
import io
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmtune.cli.requests import Reading, message_sample, prompt_sample
from mmtune.core.errors import DataError, NotPossibleError
from mmtune.data.media import MediaLookup
from mmtune.data.sample import Media, Text
from mmtune.model.generation import answers
from tests.cli.conftest import Run

KEYS = {"text", "token_ids", "finish_reason", "prompt", "prompt_tokens", "new_tokens", "seconds", "model"}
KEYS |= {"tokens_per_second"}
READING = Reading({"image": "<image>"}, {"image": "image", "images": "image", "audios": "audio"})
SHORT = ("--max-new-tokens", 4)


def test_a_prompt_without_marker_gets_one_line_an_item() -> None:
    sample = prompt_sample("Why?", {"image": ["a.png", "b.png"], "audio": []}, READING)
    expected = (Media("image", "a.png"), Text("\n"), Media("image", "b.png"), Text("\nWhy?"))
    assert sample.turns[0].parts == expected


def test_markers_of_a_prompt_stay_where_they_are() -> None:
    sample = prompt_sample("Is <image> like <image>?", {"image": ["a", "b"]}, READING)
    expected = (Text("Is "), Media("image", "a"), Text(" like "), Media("image", "b"), Text("?"))
    assert sample.turns[0].parts == expected


@pytest.mark.parametrize(("prompt", "images"), [("<image><image>?", ["a"]), ("<image>?", ["a", "b"]), ("<image>?", [])])
def test_markers_must_match_media(prompt: str, images: list[str]) -> None:
    with pytest.raises(DataError):
        prompt_sample(prompt, {"image": images}, READING)


def test_a_raw_prompt_gets_no_marker() -> None:
    with pytest.raises(DataError):
        prompt_sample("Why?", {"image": ["a"]}, Reading(READING.markers, READING.keys, raw=True))


def test_a_modality_that_the_model_lacks() -> None:
    with pytest.raises(NotPossibleError, match="no modality 'audio'"):
        prompt_sample("Why?", {"audio": ["a.wav"]}, READING)
    body = {"messages": [{"role": "user", "content": "<audio>?"}], "audios": ["a.wav"]}
    with pytest.raises(NotPossibleError):
        message_sample(body, READING, where="m.json", lookup=MediaLookup(Path()))


def test_media_of_messages_are_looked_up_beside_the_file(picture: Path) -> None:
    parts = [{"type": "image_url", "image_url": {"url": picture.name}}, {"type": "text", "text": "Why?"}]
    for body in (
        {"messages": [{"role": "user", "content": parts}]},
        {"messages": [{"role": "user", "content": "<image>\nWhy?"}], "images": [picture.name]},
    ):
        sample = message_sample(body, READING, where="m.json", lookup=MediaLookup(picture.parent))
        assert sample.media == (Media("image", str(picture)),)
        assert sample.turns[0].text == "\nWhy?"


def test_files_read_nothing_outside_their_roots(
    mmtune: Run, checkpoint: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    file, batch = inside / "m.json", inside / "b.jsonl"
    for named, words in ((str(picture), "--media-root"), ("../x.png", "leaves"), ("http://x.y/z.png", "URL")):
        body = {"messages": [{"role": "user", "content": "<image> a?"}], "images": [named]}
        file.write_text(json.dumps(body))
        refused = mmtune("generate", "--model", checkpoint, "--messages", file, "--json", *SHORT).error
        assert refused["exit"] == 3
        assert words in refused["message"] + str(refused["fix"])
    good = {"messages": [{"role": "user", "content": "<image> a?"}], "images": [str(picture)]}
    file.write_text(json.dumps(good))
    batch.write_text(json.dumps({"id": "a", "prompt": "<image> a?", "images": [picture.name]}) + "\n")
    allowed = mmtune("generate", "--model", checkpoint, "--messages", file, "--allow-outside", "--json", *SHORT)
    assert allowed.code == 0, allowed.err
    rooted = ("--media-root", picture.parent, "--batch", batch, "--output", inside / "o.jsonl", "--json")
    found = mmtune("generate", "--model", checkpoint, *rooted, *SHORT)
    assert (found.code, found.json["answered"]) == (0, 1), found.err


def test_one_answer(mmtune: Run, checkpoint: Path, picture: Path) -> None:
    found = mmtune("generate", "--model", checkpoint, "--image", picture, "--json", *SHORT)
    assert found.code == 0, found.err
    assert set(found.json) == KEYS
    assert found.json["new_tokens"] == len(found.json["token_ids"]) <= 4
    assert "<image>" in found.json["prompt"]
    assert "What is in this picture?" in found.json["prompt"]
    assert found.json["model"] == str(checkpoint)
    again = mmtune("generate", "--model", checkpoint, "--image", picture, *SHORT)
    assert again.out.rstrip("\n") == found.json["text"] or "\\x" in again.out
    assert again.err == ""


def test_standard_input_and_data_uris_are_pictures(
    mmtune: Run, checkpoint: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    named = mmtune("generate", "--model", checkpoint, "--image", picture, "--json", *SHORT).json
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(picture.read_bytes())))
    for item in (uri, "-"):
        found = mmtune("generate", "--model", checkpoint, "--image", item, "--json", *SHORT)
        assert found.json["token_ids"] == named["token_ids"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    assert mmtune("generate", "--image", "-", "--json").error["exit"] == 3


def test_logprobs_and_text_only(mmtune: Run, checkpoint: Path) -> None:
    found = mmtune("generate", "--model", checkpoint, "--prompt", "Hi", "--logprobs", "--json", *SHORT)
    assert len(found.json["logprobs"]) == found.json["new_tokens"]
    assert "<image>" not in found.json["prompt"]


def test_a_message_file(mmtune: Run, checkpoint: Path, picture: Path) -> None:
    file = picture.parent / "m.json"
    talk = [{"role": "user", "content": "<image> a?"}, {"role": "assistant", "content": "b"}]
    file.write_text(json.dumps({"messages": [*talk, {"role": "user", "content": "c?"}], "images": [picture.name]}))
    found = mmtune("generate", "--model", checkpoint, "--messages", file, "--json", *SHORT)
    assert found.code == 0, found.err
    assert found.json["prompt"].count("<image>") == 1
    assert mmtune("generate", "--messages", file, "--prompt", "x", "--json").error["exit"] == 2


def test_a_batch_keeps_the_order_and_counts_failures(mmtune: Run, checkpoint: Path, picture: Path) -> None:
    rows = [
        {"id": "long", "prompt": "why " * 30, "images": [picture.name]},
        {"id": "gone", "prompt": "?", "images": ["gone.png"]},
        {"id": "short", "messages": [{"role": "user", "content": "Hi"}]},
        {"id": "endless", "prompt": "x" * 600},
        {"id": "markers", "prompt": "<image>"},
    ]
    batch, output = picture.parent / "b.jsonl", picture.parent / "new" / "answers.jsonl"  # the folder is made
    batch.write_text("\n".join([*map(json.dumps, rows), "", "{broken", "[1]"]))
    found = mmtune("generate", "--model", checkpoint, "--batch", batch, "--output", output, "--json", *SHORT)
    assert found.code == 0, found.err
    assert (found.json["rows"], found.json["answered"], found.json["failed"]) == (7, 2, 5)
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in answers] == ["long", "gone", "short", "endless", "markers", "7", "8"]
    assert [("error" in row) for row in answers] == [False, True, False, True, True, True, True]
    assert KEYS - {"tokens_per_second"} <= set(answers[0])
    assert not list(output.parent.glob("*.part"))


def test_rows_keep_their_ids_and_name_their_question(mmtune: Run, checkpoint: Path, picture: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}]
    rows: list[dict[str, Any]] = [
        {"id": 7, "prompt": "a"},
        {"id": None, "prompt": "b"},
        {"id": "media", "images": [picture.name]},
        {"id": "typo", "promt": "c", "images": [picture.name]},
        {"id": "llava", "text": "d", "image": picture.name},
        {"id": "nothing"},
        {"id": "both", "prompt": "e", "messages": talk},
    ]
    batch, output = picture.parent / "b.jsonl", picture.parent / "answers.jsonl"
    batch.write_text("\n".join(map(json.dumps, rows)))
    found = mmtune("generate", "--model", checkpoint, "--batch", batch, "--output", output, "--json", *SHORT)
    assert found.code == 0, found.err
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in answers] == [7, "2", "media", "typo", "llava", "nothing", "both"]
    assert [("error" in row) for row in answers] == [False, False, False, True, True, True, True]
    assert "What is in this picture?" in answers[2]["prompt"]
    assert answers[3]["error"]["fix"] == "rename 'promt' to 'prompt'"
    assert "beside 'text'" in answers[4]["error"]["message"]


def test_a_stopped_batch_goes_on(mmtune: Run, checkpoint: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, output = picture.parent / "b.jsonl", picture.parent / "answers.jsonl"
    batch.write_text("\n".join(json.dumps({"id": name, "prompt": name * 3}) for name in "abcde"))
    command = ("generate", "--model", checkpoint, "--batch", batch, "--batch-size", "1", "--json", *SHORT)
    assert mmtune(*command, "--output", picture.parent / "whole.jsonl").code == 0
    asked: list[int] = []

    def until(limit: int) -> Any:
        def some(model: Any, processor: Any, samples: Any, *given: Any, **options: Any) -> Any:
            asked.append(len(samples))
            for number, found in enumerate(answers(model, processor, samples, *given, **options)):
                if number == limit:
                    signal.raise_signal(signal.SIGINT)
                yield found

        return some

    monkeypatch.setattr("mmtune.model.generation.answers", until(2))
    stopped = mmtune(*command, "--output", output)
    assert stopped.code == 75
    assert not output.exists()
    monkeypatch.setattr("mmtune.model.generation.answers", until(99))
    assert mmtune(*command, "--output", output).json["answered"] == 5
    assert asked == [5, 3]
    whole = (picture.parent / "whole.jsonl").read_text().splitlines()
    lines = output.read_text().splitlines()
    assert [json.loads(line)["token_ids"] for line in lines] == [json.loads(line)["token_ids"] for line in whole]
    assert not list(output.parent.glob("*.part"))


def test_answers_never_replace_the_prompts(mmtune: Run, checkpoint: Path, tmp_path: Path) -> None:
    batch = tmp_path / "b.jsonl"
    batch.write_text('{"prompt": "a"}\n')
    for output in (batch, tmp_path):
        found = mmtune("generate", "--model", checkpoint, "--batch", batch, "--output", output, "--json")
        assert (found.code, found.json["error"]["where"]) == (2, "--output")
    assert batch.read_text() == '{"prompt": "a"}\n'


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--prompt", "x", "--system", "\udcff"), 2),
        (("--prompt", "x", "--stop", "\udcff"), 2),
        (("--prompt", "x", "--system", "\ue000"), 2),
        ((), 2),
        (("--batch", "b.jsonl"), 2),
        (("--output", "x.jsonl"), 2),
        (("--batch", "b.jsonl", "--output", "x", "--prompt", "y"), 2),
        (("--batch", "b.jsonl", "--output", "x"), 3),
        (("--messages", "m.json"), 3),
        (("--image", "-", "--image", "-"), 2),
        (("--top-p", "0"), 2),
        (("--temperature", "-1"), 2),
        (("--device", "warp", "--prompt", "x"), 2),
        (("--dtype", "float7", "--prompt", "x"), 2),
        (("--template", "vicuna_v9", "--prompt", "x"), 2),
    ],
)
def test_options_that_cannot_be(mmtune: Run, checkpoint: Path, arguments: tuple[str, ...], code: int) -> None:
    found = mmtune("generate", "--model", checkpoint, *arguments, "--json")
    assert found.error["exit"] == code
    assert found.error["fix"]
    assert found.error["where"]


def test_names_of_templates_have_one_spelling(mmtune: Run, checkpoint: Path) -> None:
    asked = ("generate", "--model", checkpoint, "--prompt", "x", "--max-new-tokens", 1, "--json")
    assert "USER: x ASSISTANT:" in mmtune(*asked, "--template", "Vicuna-v1").json["prompt"]
    assert mmtune(*asked, "--template", "RAW").json["prompt"] == "x"
    assert mmtune(*asked, "--template", "vicuna_v9").error["where"] == "--template"
