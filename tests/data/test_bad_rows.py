"""Every kind of bad row is rejected with its own reason, and nothing else is."""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtune.core.errors import DataError, UsageError
from mmtune.data.dataset import load_samples
from mmtune.data.examination import examine
from mmtune.data.media import Found
from mmtune.data.messages import RowError
from mmtune.data.prepare import prepare
from mmtune.data.sample import Media
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
    ("bad_unicode", _llava(talk(), image="a\ud800.png")),
    ("bad_unicode", _llava(talk("<document> Hi", "c"), documents=["a\ud800b"])),
    ("bad_unicode", {**_llava(), "id": "a\ud800"}),
    ("bad_unicode", _llava(note={"a\udc00": 1})),
    ("conversations_as_text", _llava(json.dumps(talk("Hi", "Hello.")))),
    ("turn_of_messages", _llava([USER, BOT])),
    ("list_for_text", _llava(_said(("human", ["Hi", "you"]), ("gpt", "Hello.")))),
    ("list_as_text", _llava(talk(), image="['pictures/0.png']")),
    ("windows_path", _llava(talk(), image="pictures\\0.png")),
    ("path_too_long", _llava(talk(), image="a" * 5000 + ".png")),
    ("media_not_a_file", _llava(talk(), image="pipe.png")),
    ("media_too_large", _llava(talk(), image="bomb.png")),
    ("media_one_pixel", _llava(talk(), image="pixel.gif")),
    ("not_an_object", json.dumps({"id": "bad"})),
    ("bad_number", _llava(talk("Hi", "Hello."), score=float("nan"))),
]
MESSAGES_CASES: list[tuple[str, Any]] = [
    ("broken_json", '{"id": "bad", "messages": ['),
    ("not_an_object", "[1, 2]"),
    ("no_turns", {"id": "bad", "messages": "Hi"}),
    ("no_turns", {"id": "bad", "messages": []}),
    ("no_turns", {"id": "bad"}),
    ("bad_turn", {"id": "bad", "messages": ["Hi"]}),
    ("messages_as_text", {"id": "bad", "messages": json.dumps([USER, BOT])}),
    ("too_deep", '{"id": "bad", "messages": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    ("bad_number", '{"id": ' + "9" * 5000 + "}"),
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
    os.mkfifo(folder / "pipe.png")
    Image.new("L", (1, 1)).save(folder / "pixel.gif")
    header = whole.find(b"IHDR")
    sizes = struct.pack(">II", 60_000, 60_000) + whole[header + 12 : header + 17]
    bomb = whole[: header + 4] + sizes + struct.pack(">I", zlib.crc32(b"IHDR" + sizes)) + whole[header + 21 :]
    (folder / "bomb.png").write_bytes(bomb)
    write_json(folder / "good.json", rows)
    return folder


@pytest.mark.parametrize(("reason", "row"), LLAVA_CASES)
def test_llava_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, row: Any) -> None:
    folder = _folder(tmp_path)
    monkeypatch.chdir(folder)
    good = json.loads((folder / "good.json").read_text())
    path = write_json(folder / "mixed.json", [*good[:2], row, *good[2:]])
    _check(path, tmp_path / "out", reason, line=4, rows=len(good))


TABLE_CASES: list[tuple[str, dict[str, Any]]] = [
    ("no_picture_column", {"caption": "A cat."}),
    ("several_pictures", {"image": ["a.png", "b.png"], "caption": "Two."}),
    ("bad_media_field", {"image": 3, "caption": "A cat."}),
    ("text_expected", {"image": "a.png", "caption": {"en": "A cat."}}),
]


@pytest.mark.parametrize(("reason", "row"), TABLE_CASES)
def test_caption_row(tmp_path: Path, reason: str, row: dict[str, Any]) -> None:
    picture(tmp_path / "a.png")
    path = write_lines(tmp_path / "rows.jsonl", [{"image": "a.png", "caption": "A cat."}, row])
    _check(path, tmp_path / "out", reason, line=2, rows=1)


def test_urls_and_rights(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", [_llava(image="a.png"), _llava(talk(), image="https:///cat.png")])
    assert _reasons(path, tmp_path / "urls", allow_urls=True) == {"bad_url": 1, "media_exceed_markers": 1}
    with pytest.raises(RowError) as raised:
        examine(Media("image", "gone.png"), Found(str(tmp_path / "gone.png"), "beside-data", 0), "stat")
    assert raised.value.reason == "media_unreadable"
    picture(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_bytes(b"\xff")
    picture(tmp_path / "photos" / "b.png")
    (tmp_path / "photos" / "b.txt").write_text("A cat.")
    assert _reasons(tmp_path / "photos", tmp_path / "captions") == {"caption_unreadable": 1}


def _reasons(source: Path, output: Path, **options: Any) -> dict[str, int]:
    with pytest.raises(DataError):
        prepare([source], output, **options)
    listed = Path(f"{output}.rejected.jsonl").read_text().splitlines()
    return dict(Counter(json.loads(line)["reason"] for line in listed))


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


def test_every_reason_of_the_source_code_is_tested() -> None:
    """The reasons that the code can give are those that tests name, here or beside the part that gives them."""
    package, tests = Path(__file__).parents[2] / "mmtune" / "data", Path(__file__).parent
    code = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    given = set(re.findall(r'RowError\(\s*"([a-z_]+)"', code)) | {"leak", "duplicate"}
    named = "\n".join(path.read_text(encoding="utf-8") for path in [*tests.glob("test_*.py")])
    untested = {reason for reason in given if not re.search(rf"\b{reason}\b", named)}
    assert len(given) >= 60
    assert not untested


def test_what_is_only_odd_is_used_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    red = Image.new("RGB", (40, 30), "red")
    red.convert("CMYK").save(folder / "cmyk.jpg")
    red.convert("P").save(folder / "palette.png")
    Image.new("RGBA", (40, 30)).save(folder / "alpha.png")
    red.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")])
    exif = Image.Exif()
    exif[0x0112] = 6
    red.save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (90, 2)).save(folder / "long.jpg")
    names = ["cmyk.jpg", "palette.png", "alpha.png", "moving.gif", "turned.jpg", "long.jpg", "cmyk.png"]
    rows = [_llava(talk(answer=name), image=name) for name in names]
    rows += [_llava(talk("What is </s>?", "An end.")), _llava(talk("What is </s>?", "An end."))]
    rows.append(_llava([{"from": "gpt", "value": "Hi."}, *talk("Hi", "Hello.")]))
    path = write_json(folder / "rows.json", rows)
    found = prepare([path], tmp_path / "out", check_media="decode")
    assert (found["rows"], found["rejected"]) == (10, 0)
    assert found["warnings"] == {
        "animated": 1, "cmyk": 2, "control_token": 2, "duplicate": 1, "extreme_aspect": 1, "leading_answer": 1,
        "other_ending": 1, "palette": 2, "rotated": 1, "transparency": 1,
    }  # fmt: skip
    listed = [json.loads(line) for line in (tmp_path / "out" / "warnings.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in listed] == sorted(entry["row"] for entry in listed)
    found = prepare([path], tmp_path / "strict", check_media="decode", reject=["duplicate", "cmyk", "control_token"])
    assert found["reasons"] == {"cmyk": 2, "control_token": 2}
    assert found["rows"] + found["rejected"] == 10
    assert prepare([path], tmp_path / "once", reject=["duplicate"])["reasons"] == {"duplicate": 1}
    with pytest.raises(UsageError, match="duplicate"):
        prepare([path], tmp_path / "none", reject=["duplicates"])


def test_the_same_picture_is_never_in_two_splits(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    content = {index: picture(folder / f"{index}.png", f"rgb({index},0,0)") for index in range(20)}
    content[0].rename(folder / "copy.png")
    picture(folder / "0.png", "rgb(0,0,0)")
    rows = [_llava(talk(f"<image> {index}?"), image=f"{index % 20}.png") for index in range(60)]
    rows.append(_llava(talk("<image> copy?"), image="copy.png"))
    rows = [{**row, "id": f"r{index}"} for index, row in enumerate(rows)]
    path = write_json(folder / "rows.json", rows)
    found = prepare([path], tmp_path / "out", split="train=0.7,val=0.3", check_media="decode")
    assert found["splits"]["val"] in range(15, 20)
    samples = [load_samples(tmp_path / "out", split=name) for name in ("train", "val")]
    shown = [{Path(item.uri).read_bytes() for row in part for item in row.media} for part in samples]
    assert not shown[0] & shown[1]

    write_json(tmp_path / "both" / "train.json", rows[:10])
    write_json(tmp_path / "both" / "val.json", [rows[20], rows[15]])
    for index in range(20):
        picture(tmp_path / "both" / f"{index}.png")
    with pytest.raises(DataError, match="leak"):
        prepare([tmp_path / "both"], tmp_path / "leaking")
    found = prepare([tmp_path / "both"], tmp_path / "kept", max_bad_fraction=0.1)
    assert (found["splits"], found["reasons"]) == ({"train": 10, "val": 1}, {"leak": 1})
