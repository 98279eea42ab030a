"""`mmtune chat`, talked to through standard input."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mmtune as package
from mmtune.cli.conversation import Conversation
from mmtune.model.decoding import Decoding
from tests.cli.conftest import Run


@pytest.fixture
def say(mmtune: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*lines: str, options: tuple[Any, ...] = ("--json",)) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return mmtune("chat", "--model", checkpoint, "--max-new-tokens", 4, *options)

    return run


def test_history_pictures_and_commands(say: Any, mmtune: Run, checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    found = say("Hi", f"/image {picture}", "what?", "and now?", f"/save {saved}", "/quit", "never")
    assert found.code == 0, found.err
    messages = found.json["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 3
    assert found.json["looks"] == 1  # three questions, one look at the picture
    assert {"type": "image", "image": str(picture.absolute())} in messages[2]["content"]
    assert json.loads(saved.read_text())["messages"] == messages
    saved.write_text(json.dumps({"messages": messages[:-1]}))
    again = mmtune("generate", "--model", checkpoint, "--messages", saved, "--max-new-tokens", 4, "--json")
    assert again.json["text"] == "".join(part["text"] for part in messages[-1]["content"]).strip()


def test_reset_forgets(say: Any, picture: Path) -> None:
    messages = say("Hi", f"/image {picture}", "/reset", "Ho").json["messages"]
    assert [part for message in messages for part in message["content"] if part["type"] != "text"] == []
    assert messages[0]["content"] == [{"type": "text", "text": "Ho"}]
    assert len(messages) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/imge x.png", "/image"),
        ("Hi \udcff", "surrogate"),  # as a byte that is no UTF-8 comes in
        ("/image", "/image FILE"),
        ("/image gone.png", "no file"),
        ("/video x", "/help"),
        (f"/image {__file__}", "test_chat.py"),
        ("/image http://127.0.0.1:1/x.png", "URLs are not opened"),
        ("/save /no/such/place/t.json", "Cannot write: No such file or directory. (save it elsewhere: /save FILE)"),
        ("x " * 2000, "positions"),
    ],
)
def test_a_mistake_is_explained_and_the_talk_goes_on(say: Any, line: str, words: str) -> None:
    found = say(line, "Hi")
    assert found.code == 0
    assert words in found.err
    assert len(found.json["messages"]) == 2


def test_plain_answers_go_to_stdout(say: Any) -> None:
    found = say("Hi", "Ho", options=())
    assert found.code == 0
    assert len(found.out.splitlines()) == 2


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(checkpoint: Path) -> None:
    model, processor = package.load(checkpoint, device="cpu")
    with torch.no_grad():
        model.language_model.lm_head.weight[processor.tokenizer.eos_token_id] = 0  # so that the answer is long
    talk = Conversation(model, processor, Decoding(max_new_tokens=30))

    def interrupt(text: str) -> None:
        if not text.startswith(" ["):
            raise KeyboardInterrupt

    whole = talk.ask("Hi", lambda text: None)
    talk.reset()
    said = talk.ask("Hi", interrupt)
    assert said
    assert whole.startswith(said)
    assert len(said) < len(whole)
    assert talk.messages()[1]["content"] == [{"type": "text", "text": said}]
    talk.ask("And?", lambda text: None)
    assert len(talk.turns) == 4
