"""Raw files and folders as tables of samples."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from mmtune.core.errors import DataError
from mmtune.data import shards
from mmtune.data.dataset import load_samples
from mmtune.data.prepare import prepare
from mmtune.data.sample import Media, Sample, Text, Turn, conversation
from mmtune.data.shards import ShardReader
from tests.data.rows import good_rows, picture, talk, write_json, write_lines


def test_llava_row_becomes_a_sample(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    path = write_json(tmp_path / "rows.json", [{"id": 7, "image": "a.png", "conversations": talk(), "type": "what"}])
    user = Turn("user", (Media("image", str(tmp_path / "a.png")), Text("\nWhat is it?")))
    assert load_samples(path)[0] == Sample(
        "7", (user, Turn("assistant", (Text("A cat."),))), f"{path}:2", {"type": "what"}
    )


def test_content_parts_stand_on_their_own_lines(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    content = [
        {"type": "text", "text": "Compare"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image", "image": "b.png"},
        {"type": "text", "text": "please."},
    ]
    rows = [{"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Ok."}]}]
    parts = load_samples(write_lines(tmp_path / "rows.jsonl", rows))[0].turns[0].parts
    assert [part.text if isinstance(part, Text) else Path(part.uri).name for part in parts] == [
        "Compare", "\n", "a.png", "\n", "b.png", "\n", "please.",
    ]  # fmt: skip


def test_markers_in_content_take_the_row_s_list(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    messages = [{"role": "user", "content": "Is <image> like <image>?"}, {"role": "assistant", "content": "No."}]
    path = write_lines(tmp_path / "rows.jsonl", [{"messages": messages, "images": ["a.png", "b.png"]}])
    assert [Path(item.uri).name for item in load_samples(path)[0].media] == ["a.png", "b.png"]


@pytest.mark.parametrize("prepared", [False, True])
def test_tables_are_sequences_and_picklable(tmp_path: Path, prepared: bool) -> None:
    path = write_json(tmp_path / "rows.json", good_rows(tmp_path, 9))
    if prepared:
        prepare([path], tmp_path / "out")
        path = tmp_path / "out"
    table = load_samples(path)
    copy = pickle.loads(pickle.dumps(table))
    assert len(table) == 9
    assert [row.id for row in copy] == [f"r{index}" for index in range(9)]
    assert table[-1] == table[8]
    assert [row.id for row in table[2:4]] == ["r2", "r3"]
    with pytest.raises(IndexError):
        table[9]
    assert [row.id for row in load_samples(path, limit=2)] == ["r0", "r1"]
    assert load_samples(path, limit=2).fingerprint != table.fingerprint == load_samples(path).fingerprint


def test_folder_with_train_and_val(tmp_path: Path) -> None:
    rows = good_rows(tmp_path, 9)
    write_json(tmp_path / "train.json", rows[:6])
    write_json(tmp_path / "val.json", rows[6:])
    table = load_samples(tmp_path, split="train")
    assert table.validation is not None
    assert (len(table), len(table.validation)) == (6, 3)
    assert len(load_samples(tmp_path, split="validation")) == 3
    with pytest.raises(DataError, match="no validation split"):
        load_samples(tmp_path / "train.json", split="validation")
    (tmp_path / "train.json").rename(tmp_path / "other.json")
    with pytest.raises(DataError, match="none is called train"):
        load_samples(tmp_path)


def test_several_sources_are_joined(tmp_path: Path) -> None:
    rows = good_rows(tmp_path, 9)
    paths = [write_json(tmp_path / "one.json", rows[:4]), write_json(tmp_path / "two.json", rows[4:])]
    table = load_samples(paths)
    assert [row.id for row in table] == [f"r{index}" for index in range(9)]
    assert table.sources == tuple(map(str, paths))
    assert table.fingerprint != load_samples(paths[::-1]).fingerprint


def test_bad_rows_of_a_raw_file(tmp_path: Path) -> None:
    rows = good_rows(tmp_path, 4)
    path = write_json(tmp_path / "rows.json", [*rows, {"id": "bad", "conversations": []}])
    with pytest.raises(DataError, match="no_turns") as raised:
        load_samples(path)
    assert raised.value.where == f"{path}:6"
    table = load_samples(path, max_bad_fraction=0.5)
    assert (len(table), [row.reason for row in table.rejected]) == (4, ["no_turns"])


@pytest.mark.parametrize("content", ["{}", '[{"text": "a"}]', "[[]]", "[]"])
def test_format_that_cannot_be_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(DataError):
        load_samples(path)


def test_missing_data(tmp_path: Path) -> None:
    for name in ("none.json", "none"):
        with pytest.raises(DataError, match="No such file"):
            load_samples(tmp_path / name)
    with pytest.raises(DataError, match=r"no \.json"):
        load_samples(tmp_path)


def test_sample_json_round_trip() -> None:
    sample = conversation("What?", "That.", id="x", media={"image": ["a.png", b"\x00\xff"]})
    assert Sample.from_json(json.loads(json.dumps(sample.to_json()))) == sample
    assert sample.answer == "That."
    assert sample.without_answer().turns == sample.turns[:1]
    with pytest.raises(DataError, match="in memory"):
        conversation("What?", media={"image": [object()]}).to_json()


def test_forked_workers_read_prepared_data(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", good_rows(tmp_path, 9))
    prepare([path], tmp_path / "out")
    table = load_samples(tmp_path / "out")
    assert table[0].id == "r0"  # the parent has files open when the workers start
    loader = DataLoader(table, batch_size=2, num_workers=2, collate_fn=list)
    assert [row.id for batch in loader for row in batch] == [f"r{index}" for index in range(9)]


def test_shards_are_opened_again_when_they_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_GROUP_ROWS", 3)
    monkeypatch.setattr(shards, "_FILE_BYTES", 1500)
    monkeypatch.setattr(shards, "_KEPT_GROUPS", 1)
    rows = [{"id": f"r{index}", "conversations": talk(f"What is {index}?", "That.")} for index in range(40)]
    prepare([write_json(tmp_path / "rows.json", rows)], tmp_path / "out")
    assert len(list((tmp_path / "out").glob("train-*.parquet"))) > 4
    table = load_samples(tmp_path / "out", open_files=2)
    order = [39, 0, 20, 1, 38, 19, *range(40)]
    assert [table[index].id for index in order] == [f"r{index}" for index in order]
    assert isinstance(table.rows, ShardReader)
    assert len(table.rows._open) == 2


def test_what_an_open_shard_keeps_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_GROUP_ROWS", 1)
    monkeypatch.setattr(shards, "_FILE_GROUPS", 4)
    rows = [{"id": f"r{index}", "conversations": talk("What? " * 400, f"{index}. " * 400)} for index in range(10)]
    prepare([write_json(tmp_path / "rows.json", rows)], tmp_path / "out")
    found = [pq.read_metadata(path) for path in sorted((tmp_path / "out").glob("train-*.parquet"))]
    assert [one.num_row_groups for one in found] == [4, 4, 2]
    assert not any(one.row_group(0).column(at).is_stats_set for one in found for at in range(one.num_columns))
    assert [sample.id for sample in load_samples(tmp_path / "out")] == [f"r{index}" for index in range(10)]
