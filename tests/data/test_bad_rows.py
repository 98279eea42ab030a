"""Every kind of bad row is rejected with its own reason, and nothing else is."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from mmtune.core.errors import DataError
from mmtune.data.prepare import prepare
from tests.data.rows import good_rows, picture, talk, write_json, write_lines

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}


def _llava(conversations: Any = None, **keys: Any) -> dict[str, Any]:
    return {"id": "bad", "conversations": talk("Hi", "Hello.") if conversations is None else conversations, **keys}


def _said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": speaker, "value": value} for speaker, value in turns]


LLAVA_CASES: list[tuple[str, Any]] = [
    ("not_an_object", ["a", "list"]),
    ("bad_id", {"id": {"a": 1}, "conversations": talk("Hi", "Hello.")}),
    ("no_conversations", {"id": "bad", "text": "Hi"}),
    ("no_conversations", _llava("Hi")),
    ("no_turns", _llava([])),
    ("bad_turn", _llava(["Hi", "Hello."])),
    ("unknown_role", _llava(_said(("robot", "Hi"), ("gpt", "Hello.")))),
    ("bad_content", _llava(_said(("human", 3), ("gpt", "Hello.")))),
    ("bad_content", _llava([{"from": "human"}, {"from": "gpt", "value": "Hello."}])),
    ("no_user_turn", _llava(_said(("gpt", "Hello.")))),
    ("no_answer", _llava(_said(("human", "Hi")))),
    ("empty_answer", _llava(_said(("human", "Hi"), ("gpt", " \n")))),
    ("empty_question", _llava(_said(("human", " "), ("gpt", "Hello.")))),
    ("roles_do_not_alternate", _llava(_said(("human", "Hi"), ("human", "you"), ("gpt", "Hello.")))),
    ("roles_do_not_alternate", _llava(_said(("human", "Hi"), ("gpt", "a"), ("gpt", "b")))),
    ("system_not_first", _llava(_said(("human", "Hi"), ("system", "Be kind."), ("gpt", "Hello.")))),
    ("media_in_system", _llava(_said(("system", "<image>"), ("human", "Hi"), ("gpt", "a")), image="pictures/0.png")),
    ("media_in_answer", _llava(talk("What?", "This: <image>"), image="pictures/0.png")),
    ("markers_exceed_media", _llava(talk())),
    ("markers_exceed_media", _llava(talk("<image><image> Which?"), image="pictures/0.png")),
    ("media_exceed_markers", _llava(image="pictures/0.png")),
    ("media_exceed_markers", _llava(talk(), image=["pictures/0.png", "pictures/1.png"])),
    ("bad_media_field", _llava(talk(), image=7)),
    ("bad_media_field", _llava(talk(), image="pictures/\x00.png")),
    ("empty_media_path", _llava(talk(), image="")),
    ("media_missing", _llava(talk(), image="pictures/none.png")),
    ("path_outside", _llava(talk(), image="../../etc/passwd")),
    ("path_outside", _llava(talk(), image="/etc/passwd")),
    ("url_refused", _llava(talk(), image="https://example.org/cat.png")),
    ("url_refused", _llava(talk(), image="s3://bucket/cat.png")),
    ("media_is_folder", _llava(talk(), image="pictures")),
    ("media_empty", _llava(talk(), image="empty.png")),
    ("media_damaged", _llava(talk(), image="text.png")),
    ("media_damaged", _llava(talk(), image="cut.png")),
    ("bad_data_uri", _llava(talk(), image="data:image/png;base64,@@@")),
    ("bad_data_uri", _llava(talk(), image="data:image/png,abc")),
    ("media_damaged", _llava(talk(), image="data:image/png;base64," + base64.b64encode(b"no picture").decode())),
    ("private_character", _llava(talk("a\ue000b", "c"))),
    ("bad_unicode", _llava(talk("a\ud800b", "c"))),
]
MESSAGES_CASES: list[tuple[str, Any]] = [
    ("broken_json", '{"id": "bad", "messages": ['),
    ("not_an_object", "[1, 2]"),
    ("no_turns", {"id": "bad", "messages": "Hi"}),
    ("no_turns", {"id": "bad", "messages": []}),
    ("no_turns", {"id": "bad"}),
    ("bad_turn", {"id": "bad", "messages": ["Hi"]}),
    ("unknown_role", {"id": "bad", "messages": [{"role": "tool", "content": "x"}, BOT]}),
    ("bad_content", {"id": "bad", "messages": [{"role": "user", "content": None}, BOT]}),
    ("bad_part", {"id": "bad", "messages": [{"role": "user", "content": [{"text": "Hi"}]}, BOT]}),
    ("bad_part", {"id": "bad", "messages": [{"role": "user", "content": [{"type": "text"}]}, BOT]}),
    ("unknown_part", {"id": "bad", "messages": [{"role": "user", "content": [{"type": "smell"}]}, BOT]}),
    ("markers_exceed_media", {"id": "bad", "messages": [{"role": "user", "content": [{"type": "image"}]}, BOT]}),
    ("media_exceed_markers", {"id": "bad", "messages": [USER, BOT], "images": ["pictures/0.png"]}),
    (
        "empty_media_path",
        {"id": "bad", "messages": [{"role": "user", "content": [{"type": "image", "image": ""}]}, BOT]},
    ),
    ("bad_media_field", {"id": "bad", "messages": [{"role": "user", "content": [{"type": "image", "image": 3}]}, BOT]}),
]


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    rows = good_rows(folder)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    whole = picture(folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    write_json(folder / "good.json", rows)
    return folder


@pytest.mark.parametrize(("reason", "row"), LLAVA_CASES)
def test_llava_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, row: Any) -> None:
    folder = _folder(tmp_path)
    monkeypatch.chdir(folder)
    good = json.loads((folder / "good.json").read_text())
    path = write_json(folder / "mixed.json", [*good[:2], row, *good[2:]])
    _check(path, tmp_path / "out", reason, line=4, rows=len(good))


@pytest.mark.parametrize(("reason", "row"), MESSAGES_CASES)
def test_messages_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, row: Any) -> None:
    folder = _folder(tmp_path)
    monkeypatch.chdir(folder)
    path = write_lines(folder / "mixed.jsonl", [{"id": "a", "messages": [USER, BOT]}, row, {"messages": [USER, BOT]}])
    _check(path, tmp_path / "out", reason, line=2, rows=2)


def _check(path: Path, output: Path, reason: str, *, line: int, rows: int) -> None:
    with pytest.raises(DataError) as raised:
        prepare([path], output, check_media="decode")
    assert f"{path}:{line}: {reason}" in raised.value.message
    assert raised.value.where == f"{path}:{line}"
    assert raised.value.fix
    assert not output.exists()
    listed = json.loads(Path(f"{output}.rejected.jsonl").read_text())
    assert (listed["source"], listed["line"], listed["reason"]) == (str(path), line, reason)

    found = prepare([path], output, check_media="decode", max_bad_fraction=0.5)
    assert found["reasons"] == {reason: 1}
    assert (found["rows"], found["rejected"]) == (rows, 1)
    assert json.loads((output / "rejected.jsonl").read_text()) == listed


def test_there_are_many_kinds() -> None:
    assert len({reason for reason, _ in LLAVA_CASES + MESSAGES_CASES}) >= 25
