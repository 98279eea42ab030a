"""Preparation: equal bytes, splits, embedding, budgets, and an output that is whole or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmtune.core.errors import DataError, UsageError
from mmtune.data import columns, intake, parts
from mmtune.data.dataset import load_samples
from mmtune.data.drawing import parse_split
from mmtune.data.prepare import prepare
from mmtune.data.sample import Media
from tests.data.rows import good_rows, talk, write_json, write_lines


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_json(tmp_path / "data" / "rows.json", good_rows(tmp_path / "data", 30))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_result_has_the_documented_keys(source: Path, tmp_path: Path) -> None:
    found = prepare([source], tmp_path / "out")
    assert {"output", "rows", "rejected", "reasons", "media", "seconds", "fingerprint"} <= set(found)
    assert (found["output"], found["rows"], found["rejected"], found["media"]) == (str(tmp_path / "out"), 30, 0, 20)
    assert found["media_rules"] == {"beside-data": 20}
    json.dumps(found)


@pytest.mark.parametrize("options", [{}, {"check_media": "decode"}, {"embed_media": True}])
def test_equal_bytes_whatever_the_workers(source: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    split = {"split": "train=0.8,val=0.2"}
    prepare([source], tmp_path / "one", workers=0, **split, **options)
    prepare([source], tmp_path / "two", workers=4, **split, **options)
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")


def test_samples_come_back(source: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path / "out")
    raw, prepared = load_samples(source), load_samples(tmp_path / "out")
    assert list(raw) == list(prepared)
    assert raw[0].extra == {"type": "what"}
    assert raw[1].source == f"{source}:3"


def test_embedded_media_need_no_files(source: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path / "out", embed_media=True)
    content = (source.parent / "pictures" / "0.png").read_bytes()
    source.parent.rename(tmp_path / "gone")
    assert load_samples(tmp_path / "out")[0].media == (Media("image", content),)


def test_moved_media_are_looked_up_again(source: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path / "out")
    source.parent.rename(tmp_path / "moved")
    table = load_samples(tmp_path / "out", media_root=[tmp_path / "moved"])
    assert table[0].media == (Media("image", str(tmp_path / "moved" / "pictures" / "0.png")),)
    with pytest.raises(DataError, match=r"pictures/0\.png"):
        load_samples(tmp_path / "out")[0]


def test_fingerprint_is_of_the_content(source: Path, tmp_path: Path) -> None:
    first = prepare([source], tmp_path / "one")["fingerprint"]
    source.parent.rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "rows.json"
    assert prepare([moved], tmp_path / "two")["fingerprint"] == first
    rows = json.loads(moved.read_text())
    rows[3]["conversations"][1]["value"] = "Another answer."
    write_json(moved, rows)
    assert prepare([moved], tmp_path / "three")["fingerprint"] != first


def test_split_is_by_id_and_seed(source: Path, tmp_path: Path) -> None:
    found = prepare([source], tmp_path / "out", split="train=0.8,validation=0.2")
    assert found["splits"] == {"train": 24, "val": 6}
    train = load_samples(tmp_path / "out", split="train")
    assert train.validation is not None
    ids, other = {row.id for row in train}, {row.id for row in train.validation}
    assert (len(ids), len(other), ids & other) == (24, 6, set())
    assert {row.id for row in load_samples(tmp_path / "out", split="validation")} == other
    assert len(load_samples(tmp_path / "out")) == 30
    prepare([source], tmp_path / "again", split="train=0.8,val=0.2", seed=1)
    assert {row.id for row in load_samples(tmp_path / "again", split="val")} != other
    with pytest.raises(DataError, match="no split 'test'"):
        load_samples(tmp_path / "out", split="test")


@pytest.mark.parametrize("text", ["train", "train=0.9", "train=x,val=y", "train=0.5,train=0.5", "a b=1", ""])
def test_a_split_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError):
        parse_split(text)


def test_max_samples_draws_by_the_seed(source: Path, tmp_path: Path) -> None:
    first = prepare([source], tmp_path / "one", max_samples=7)
    second = prepare([source], tmp_path / "two", max_samples=7, seed=1)
    assert (first["rows"], second["rows"]) == (7, 7)
    ids = [[row.id for row in load_samples(tmp_path / name)] for name in ("one", "two")]
    assert ids[0] != ids[1]
    assert ids[0] == sorted(ids[0], key=lambda name: int(name[1:]))
    assert prepare([source], tmp_path / "all", max_samples=100)["rows"] == 30


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_slices_join_to_the_bytes_of_one_run(source: Path, tmp_path: Path, count: int) -> None:
    rows = json.loads(source.read_text())
    bad = [{"id": f"b{index}", "conversations": talk("Hi", "")} for index in range(5)]
    write_json(source, [*rows[:7], *bad[:3], *rows[7:], *bad[3:], rows[4]])
    options = {"split": "train=0.8,val=0.2", "seed": 3, "reject": ["duplicate"]}
    prepare([source], tmp_path / "whole", max_bad_fraction=0.5, **options)
    slices = [tmp_path / f"slice{index}" for index in range(count)]
    found = [prepare([source], folder, shard=(index + 1, count), **options) for index, folder in enumerate(slices)]
    assert sum(part["rows"] + part["rejected"] for part in found) == 36
    joined = prepare(slices[::-1], tmp_path / "joined", max_bad_fraction=0.5)
    assert _bytes(tmp_path / "joined") == _bytes(tmp_path / "whole")
    assert joined["rejected"] == 15  # five empty answers, nine copies of the text row, one of a picture's
    with pytest.raises(DataError, match="cannot be used"):
        prepare(slices, tmp_path / "strict")


def test_embedded_media_need_not_fit_together(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"embed_media": True, "weights": [1.5]}
    prepare([source], tmp_path / "whole", **options)
    monkeypatch.setattr(parts, "_EMBEDDED_BYTES", 100)  # a row or two
    monkeypatch.setattr(columns, "_TOGETHER_BYTES", 100)
    prepare([source], tmp_path / "apart", **options)
    for index in (1, 2):
        prepare([source], tmp_path / f"slice{index}", shard=(index, 2), **options)
    prepare([tmp_path / "slice1", tmp_path / "slice2"], tmp_path / "joined")
    assert _bytes(tmp_path / "apart") == _bytes(tmp_path / "joined") == _bytes(tmp_path / "whole")
    monkeypatch.setattr(intake, "_EMBEDDED_BYTES", 10)
    with pytest.raises(DataError, match="media_too_large"):
        prepare([source], tmp_path / "out", **options)


def test_slices_must_be_complete_and_alike(source: Path, tmp_path: Path) -> None:
    slices = [tmp_path / name for name in ("one", "two")]
    for index, folder in enumerate(slices):
        prepare([source], folder, shard=(index + 1, 2))
    with pytest.raises(DataError, match="2/2"):
        prepare(slices[:1], tmp_path / "out")
    with pytest.raises(DataError, match="slice 1 of 2"):
        load_samples(slices[0])
    with pytest.raises(UsageError, match="no slice"):
        prepare([slices[0], source], tmp_path / "out")
    prepare([source], slices[1], shard=(2, 2), seed=1, overwrite=True)
    with pytest.raises(DataError, match="differs from the others in seed"):
        prepare(slices, tmp_path / "out")
    with pytest.raises(UsageError):
        prepare([source], tmp_path / "none", shard=(4, 3))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "part-gone": lambda folder: [file.unlink() for file in (folder / "parts").iterdir()],
    "parts-gone": lambda folder: shutil.rmtree(folder / "parts"),
    "table-gone": lambda folder: (folder / "parts" / "0000000.arrow").unlink(),
    "table-cut": lambda folder: _cut(folder / "parts" / "0000000.arrow"),
    "list-cut": lambda folder: _cut(folder / "parts" / "0000000.json"),
    "list-empty": lambda folder: (folder / "parts" / "0000000.json").write_text("{}"),
    "manifest-thin": lambda folder: (folder / "manifest.json").write_text('{"slice": [1, 2]}'),
    "manifest-odd": lambda folder: (folder / "manifest.json").write_text('{"slice": "1"}'),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_slice_is_refused(source: Path, tmp_path: Path, damage: str) -> None:
    slices = [tmp_path / name for name in ("one", "two")]
    for index, folder in enumerate(slices):
        prepare([source], folder, shard=(index + 1, 2))
    DAMAGES[damage](slices[0])
    with pytest.raises(DataError, match="damaged") as raised:
        prepare(slices, tmp_path / "out")
    assert raised.value.where == str(slices[0])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "one", "two"]


def test_rows_and_rejected_add_up(source: Path, tmp_path: Path) -> None:
    rows = json.loads(source.read_text())
    bad = [{"id": f"b{index}", "conversations": talk("Hi", "")} for index in range(4)]
    write_json(source, [*rows, *bad, {"id": "m", "image": "none.png", "conversations": talk()}])
    with pytest.raises(DataError) as raised:
        prepare([source], tmp_path / "out", max_bad_fraction=0.1)
    assert raised.value.exit_code == 3
    assert "5 of 35 rows" in raised.value.message
    assert "empty_answer 4" in raised.value.message
    found = prepare([source], tmp_path / "out", max_bad_fraction=0.2)
    assert (found["rows"], found["rejected"], found["reasons"]) == (30, 5, {"empty_answer": 4, "media_missing": 1})
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 5


def test_several_sources_and_formats(source: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    other = write_lines(tmp_path / "more" / "chat.jsonl", [{"messages": messages}] * 3)
    found = prepare([source, other], tmp_path / "out")
    assert found["rows"] == 33
    assert [row.id for row in load_samples(tmp_path / "out")][-3:] == ["chat-0", "chat-1", "chat-2"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["format"] for entry in manifest["sources"]] == ["llava", "messages"]


def test_leading_answers_are_counted(tmp_path: Path) -> None:
    row = {"id": "a", "conversations": [{"from": "gpt", "value": "Hello there."}, *talk("Hi", "Hello.")]}
    path = write_json(tmp_path / "rows.json", [row])
    assert prepare([path], tmp_path / "out")["leading_answers"] == 1


def test_an_output_without_a_name_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for output in (".", ".."):
        with pytest.raises(UsageError, match="name"):
            prepare([source], output)


def test_output_is_never_overwritten_unasked(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([source], out)
    before = _bytes(out)
    with pytest.raises(UsageError, match="exists"):
        prepare([source], out)
    prepare([source], out, overwrite=True)
    assert _bytes(out) == before
    (tmp_path / "empty").mkdir()
    prepare([source], tmp_path / "empty")


def test_overwriting_removes_nothing_but_prepared_data(source: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path / "out")
    within = write_lines(tmp_path / "out" / "more.jsonl", [{"messages": []}])
    for sources, output in (
        ([source], source),
        ([source.parent], source.parent),
        ([source], tmp_path),
        ([source, within], tmp_path / "out"),
        ([source], source.parent / "pictures"),
    ):
        with pytest.raises(UsageError) as raised:
            prepare(sources, output, overwrite=True)
        assert raised.value.where == "--output"
    assert prepare([source], tmp_path / "out", overwrite=True)["rows"] == 30


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_weight_that_cannot_be(source: Path, tmp_path: Path, weight: float) -> None:
    with pytest.raises(UsageError, match="weight"):
        prepare([source], tmp_path / "out", weights=[weight])


def test_failure_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    path = write_json(tmp_path / "broken.json", [{"id": "a", "conversations": talk("Hi", "Ho")}])
    path.write_text(path.read_text().replace('"Ho"', '"Ho'))
    with pytest.raises(DataError) as raised:
        prepare([path], tmp_path / "out")
    assert raised.value.where == f"{path}:2"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken.json", "data"]


def test_no_row_left_is_an_error(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", [{"id": "a", "conversations": talk("Hi", "")}])
    with pytest.raises(DataError):
        prepare([path], tmp_path / "out", max_bad_fraction=1.0)


def test_damaged_prepared_data(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([source], out)
    shard = out / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        load_samples(out)
    shard.unlink()
    with pytest.raises(DataError):
        load_samples(out)
    for text in ("{", "[]", '{"schema": "mmtune-data/2"}'):
        (out / "manifest.json").write_text(text)
        with pytest.raises(DataError, match="manifest"):
            load_samples(out)
    with pytest.raises(DataError, match="prepared already"):
        prepare([out], tmp_path / "again")
