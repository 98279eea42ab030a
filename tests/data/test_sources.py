"""Each form of data that is known, told by its content, with small files of its real shape, good and bad."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from mmtune.core.errors import DataError, UsageError
from mmtune.data.dataset import load_samples
from mmtune.data.locate import data_files
from mmtune.data.prepare import prepare
from mmtune.data.reading import RawRow
from mmtune.data.sample import Sample
from tests.data.rows import good_rows, picture, talk, write_json, write_lines


def _shown(sample: Sample) -> list[tuple[str, str]]:
    """Roles and texts of a sample, a picture as its file's name."""
    return [
        (
            turn.role,
            "".join(f"[{Path(str(part.uri)).name}]" if hasattr(part, "uri") else part.text for part in turn.parts),
        )
        for turn in sample.turns
    ]


def _formats(output: Path) -> list[str]:
    return [entry["format"] for entry in json.loads((output / "manifest.json").read_text())["sources"]]


def _prepared(source: Path, tmp_path: Path, **options: Any) -> tuple[dict[str, Any], list[Sample], str]:
    found = prepare([source], tmp_path / "out", **options)
    return found, list(load_samples(tmp_path / "out")), _formats(tmp_path / "out")[0]


def test_sharegpt(tmp_path: Path) -> None:
    rows = [
        {"id": "a_0", "conversations": [{"from": "gpt", "value": "Welcome."}, *talk("Hi", "Hello.")]},
        {
            "id": "b",
            "system": "Be brief.",
            "items": [{"from": "user", "value": "Hi"}, {"from": "chatgpt", "value": "Ho"}],
        },
    ]
    found, samples, _ = _prepared(write_json(tmp_path / "sg.json", rows), tmp_path, format="sharegpt")
    assert _shown(samples[1]) == [("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho")]
    assert found["warnings"] == {"leading_answer": 1}
    bad = {"id": "c", "conversations": [{"from": "user", "value": "x"}, {"from": "function_call", "value": "y"}]}
    path = write_json(tmp_path / "auto.json", [rows[1], bad, {**rows[1], "system": 3}])
    found = prepare([path], tmp_path / "auto", max_bad_fraction=0.9)
    assert _formats(tmp_path / "auto") == ["sharegpt"]
    assert found["reasons"] == {"bad_system": 1, "tool_turn": 1}


def test_alpaca(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "What is it?", "input": "", "output": "A cat.", "images": ["a.png"], "system": "Look."},
        {"instruction": "And?", "output": "More.", "history": [["Hi", "Hello."]]},
        {"instruction": "x"},
        {"instruction": 3, "output": "x"},
        {"output": "x"},
        {"instruction": "x", "output": "y", "history": ["a"]},
        {"instruction": "x", "output": ""},
    ]
    found, samples, kind = _prepared(write_lines(tmp_path / "al.jsonl", rows), tmp_path, max_bad_fraction=0.9)
    assert kind == "alpaca"
    assert [_shown(sample) for sample in samples] == [
        [("user", "Add.\n1 and 2"), ("assistant", "3")],
        [("system", "Look."), ("user", "[a.png]\nWhat is it?"), ("assistant", "A cat.")],
        [("user", "Hi"), ("assistant", "Hello."), ("user", "And?"), ("assistant", "More.")],
    ]
    assert found["reasons"] == {
        "bad_history": 1, "empty_answer": 1, "no_instruction": 1, "no_output": 1, "text_expected": 1,
    }  # fmt: skip


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_captions_in_text_tables(tmp_path: Path, ending: str) -> None:
    delimiter = "," if ending == "csv" else "\t"
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows(
        [["file_name", "caption", "score"], ["a.png", 'A "red"\ncat, sitting.', "1"], ["b.png", "A dog.", ""]]
    )
    lines = [delimiter.join(cells) for cells in (["a.png"], ["", "no picture", "1"], ["a.png", "", "2"])]
    path = tmp_path / f"rows.{ending}"
    path.write_text("\ufeff" + text.getvalue() + "\n".join(lines) + f'\na.png{delimiter}"x"y{delimiter}3\n')
    found, samples, kind = _prepared(path, tmp_path, max_bad_fraction=0.9)
    assert kind == "captions"
    assert [_shown(sample) for sample in samples] == [
        [("user", "[a.png]"), ("assistant", 'A "red"\ncat, sitting.')],
        [("user", "[b.png]"), ("assistant", "A dog.")],
    ]
    assert samples[0].extra == {"score": "1"}
    assert samples[1].source.endswith(f"rows.{ending}:4")
    assert found["reasons"] == {"bad_quoting": 1, "no_caption": 1, "no_picture": 1, "wrong_column_count": 1}


def test_a_mistyped_column_names_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("imagee,captoin\na.png,A cat.\n")
    with pytest.raises(DataError, match="imagee"):
        prepare([path], tmp_path / "out")
    with pytest.raises(DataError) as raised:
        prepare([path], tmp_path / "out", format="captions")
    assert "rename 'imagee' to 'image'" in str(raised.value.fix)
    for text, word in (("", "no header"), ("a,a\n1,2\n", "called 'a'")):
        path.write_text(text)
        with pytest.raises(DataError, match=word):
            prepare([path], tmp_path / "out")


def test_captions_in_parquet_with_bytes(tmp_path: Path) -> None:
    content = picture(tmp_path / "x" / "a.png").read_bytes()
    items = [{"bytes": content, "path": "a.png"}, {"bytes": None, "path": None}, {"bytes": b"", "path": "x/a.png"}]
    table = pa.table({"image": items, "text": [["A cat.", "Cats."], ["x"], ["A cat too."]], "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "rows.parquet")
    found, samples, kind = _prepared(tmp_path / "rows.parquet", tmp_path, max_bad_fraction=0.5, check_media="decode")
    assert kind == "captions"
    assert (samples[0].media[0].uri, samples[0].answer, samples[0].extra) == (content, "A cat.", {"n": 1})
    assert str(samples[1].media[0].uri) == str(tmp_path / "x" / "a.png")
    assert found["reasons"] == {"no_picture": 1}
    row = pq.read_table(tmp_path / "out" / "train-00000.parquet").to_pylist()[0]["media"][0]
    assert (row["size"], row["type"], len(row["sha256"])) == (len(content), "image/png", 64)
    (tmp_path / "rows.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        prepare([tmp_path / "rows.parquet"], tmp_path / "again")


@pytest.mark.parametrize("ending", ["parquet", "json"])
def test_capsfusion_and_drawing_from_it(tmp_path: Path, ending: str) -> None:
    rows = [
        {
            "image_url": f"http://127.0.0.1/{index}.jpg",
            "capsfusion": f"Thing {index}.",
            "laion_2b": "x",
            "laion_coco": "y",
        }
        for index in range(50)
    ]
    rows[7]["image_url"] = None
    path = tmp_path / f"caps.{ending}"
    pq.write_table(pa.Table.from_pylist(rows), path) if ending == "parquet" else write_json(path, rows)
    with pytest.raises(DataError, match="url_refused"):
        prepare([path], tmp_path / "none")
    found = prepare([path], tmp_path / "out", allow_urls=True, max_bad_fraction=0.1)
    assert (_formats(tmp_path / "out"), found["rows"], found["reasons"]) == (["capsfusion"], 49, {"no_picture": 1})
    assert _shown(load_samples(tmp_path / "out").rows[0]) == [("user", "[0.jpg]"), ("assistant", "Thing 0.")]
    some = [
        prepare([path], tmp_path / name, allow_urls=True, max_bad_fraction=0.5, max_samples=10, seed=seed)
        for name, seed in (("s0", 0), ("again", 0), ("s1", 1))
    ]
    assert {part["rows"] + part["rejected"] for part in some} == {10}
    assert some[0]["fingerprint"] == some[1]["fingerprint"] != some[2]["fingerprint"]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_webdataset_tars(tmp_path: Path) -> None:
    red = picture(tmp_path / "red.png").read_bytes()
    (tmp_path / "shards").mkdir()
    members = [
        ("0.png", red), ("0.txt", b"A cat."), ("0.json", b'{"url": "http://x/0", "caption": "old"}'),
        ("1.png", red), ("2.txt", b"No picture."), ("3.png", red), ("3.json", b"{"), ("4.png", red), ("4.txt", b"\xff"),
        ("5.png", red), ("5.json", json.dumps({"conversations": talk()}).encode()), ("6.png", red), ("6.png", red),
    ]  # fmt: skip
    for number, some in enumerate((members[:3], members[3:])):
        with tarfile.open(tmp_path / "shards" / f"{number:05d}.tar", "w") as tar:
            for name, content in some:
                _add(tar, name, content)
    found, samples, kind = _prepared(tmp_path / "shards", tmp_path, max_bad_fraction=0.9, format="captions")
    assert kind == "captions"
    assert (samples[0].media[0].uri, samples[0].answer, samples[0].id) == (red, "A cat.", "0")
    assert found["reasons"] == {
        "no_caption": 1, "no_caption_column": 1, "no_picture": 1, "tar_bad_json": 1, "tar_bad_text": 1,
        "tar_member_twice": 1,
    }  # fmt: skip
    with tarfile.open(tmp_path / "talk.tar", "w") as tar:
        for name, content in members[9:11]:
            _add(tar, name, content)
    prepare([tmp_path / "talk.tar"], tmp_path / "talk")
    assert _formats(tmp_path / "talk") == ["llava"]
    assert load_samples(tmp_path / "talk")[0].media[0].uri == red
    whole = (tmp_path / "talk.tar").read_bytes()
    (tmp_path / "talk.tar").write_bytes(whole[:700])
    with pytest.raises(DataError, match="breaks off"):
        prepare([tmp_path / "talk.tar"], tmp_path / "cut")


def test_data_sets_of_the_library(tmp_path: Path) -> None:
    from datasets import DatasetDict, Features, Image, Value

    paths = [str(picture(tmp_path / "p" / f"{index}.png", color)) for index, color in enumerate(("red", "blue"))]
    features = Features({"image": Image(), "text": Value("string")})
    parts = [Dataset.from_dict({"image": [path], "text": ["A thing."]}, features=features) for path in paths]
    DatasetDict({"train": parts[0], "validation": parts[1]}).save_to_disk(tmp_path / "saved")
    found, samples, kind = _prepared(tmp_path / "saved", tmp_path, check_media="decode")
    assert (kind, found["splits"]) == ("captions", {"train": 1, "val": 1})
    assert samples[0].media[0].uri == Path(paths[0]).read_bytes()
    table = load_samples(tmp_path / "saved", split="validation")
    assert len(table) == 1
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table({"url": ["p/0.png"], "caption": ["A cat."]}), tmp_path / "hub" / "train.parquet")
    found = prepare([f"hub:{tmp_path / 'hub'}"], tmp_path / "streamed", media_root=[tmp_path], max_samples=5)
    assert found["rows"] == 1


def test_folder_of_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("a", "sub/b", "c", "d"):
        picture(folder / f"{name}.png")
    for name in ("a", "sub/b", "d"):
        (folder / f"{name}.txt").write_text("" if name == "d" else f"Picture {name}.\n")
    found, samples, kind = _prepared(folder, tmp_path, max_bad_fraction=0.5)
    assert kind == "captions"
    assert [(sample.id, sample.answer) for sample in samples] == [("a", "Picture a."), ("sub/b", "Picture sub/b.")]
    assert found["reasons"] == {"no_caption": 2}
    for file in folder.rglob("*.txt"):
        file.unlink()
    (folder / "metadata.csv").write_text("file_name,text\na.png,A cat.\n")
    assert prepare([folder], tmp_path / "table")["rows"] == 1


def test_sources_mix_by_weight(tmp_path: Path) -> None:
    rows = good_rows(tmp_path, 20)
    one, two = write_json(tmp_path / "one.json", rows[:10]), write_json(tmp_path / "two.json", rows[10:])
    found = prepare([one, two], tmp_path / "out", weights=[2.5, 0.3])
    assert found["rows_by_source"] == {str(one): 25, str(two): 3}
    assert (found["rows"], found["copies"], found["left_out_by_weight"]) == (28, 15, 7)
    again = prepare([one, two], tmp_path / "again", weights=[2.5, 0.3])
    assert found["fingerprint"] == again["fingerprint"]
    for weights in ([1.0], [1.0, 0.0]):
        with pytest.raises(UsageError):
            prepare([one, two], tmp_path / "none", weights=weights)


def test_a_mistyped_path_names_the_right_one(tmp_path: Path) -> None:
    write_json(tmp_path / "data" / "train.json", good_rows(tmp_path / "data"))
    for typo in ("data/trian.json", "dta/train.json"):
        with pytest.raises(DataError) as raised:
            prepare([tmp_path / typo], tmp_path / "out")
        assert str(tmp_path / "data" / "train.json") in str(raised.value.fix)
    with pytest.raises(UsageError, match="alpaca"):
        prepare([tmp_path / "data"], tmp_path / "out", format="alpacca")


def test_files_of_a_folder_that_is_one_source(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_text("A cat.")
    assert [file.name for file in data_files(tmp_path / "photos")] == ["a.png", "a.txt"]
    assert len(load_samples(tmp_path / "photos", cache=tmp_path / "cache")) == 1


@pytest.mark.parametrize(("change", "reason"), [({"question": None}, "no_question"), ({"answer": 7}, "bad_answer")])
def test_damaged_problems_of_scienceqa(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "", "lecture": "", "solution": "",
               "image": None, "subject": "x", "grade": "grade2", "split": "train"}  # fmt: skip
    problems = {"1": problem, "2": {**problem, **change}}
    (tmp_path / "sqa").mkdir()
    (tmp_path / "sqa" / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "sqa" / "pid_splits.json").write_text(json.dumps({"train": ["1", "2"], "val": [], "test": []}))
    found = prepare([tmp_path / "sqa"], tmp_path / "out", max_bad_fraction=0.5)
    assert (found["rows"], found["reasons"]) == (1, {reason: 1})


def test_a_stream_is_read_as_far_as_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def endless(_: str) -> Iterator[RawRow]:
        for index in count():
            read.append(index)
            yield RawRow(index, index + 1, {"instruction": f"Say {index}.", "output": "Yes."})

    monkeypatch.setattr("mmtune.data.intake.hub_rows", endless)
    found = prepare(["hub:some/stream"], tmp_path / "out", max_samples=5)
    assert (found["rows"], max(read)) == (5, 4)


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ({"img_path": "a.jpg", "captoin": "A cat."}, "rename 'captoin' to 'caption'"),
        ({"id": "a", "conversation": talk()}, "rename 'conversation' to 'conversations'"),
        ({"mesages": []}, "rename 'mesages' to 'messages'"),
        ({"Instructoin": "Hi", "output": "Ho"}, "rename 'Instructoin' to 'instruction'"),
        ({"imageurl": "http://a/b.jpg", "capsfusion": "A cat."}, "rename 'imageurl' to 'image_url'"),
        ({"zzz": 1}, "prepare-data has --format"),
    ],
)
def test_a_misspelt_column_is_named(tmp_path: Path, row: dict[str, Any], fix: str) -> None:
    with pytest.raises(DataError, match="cannot be told") as raised:
        prepare([write_lines(tmp_path / "rows.jsonl", [row])], tmp_path / "out")
    assert fix in str(raised.value.fix)
    assert raised.value.where == f"{tmp_path / 'rows.jsonl'}:1"


def test_bad_first_rows_do_not_hide_the_format(tmp_path: Path) -> None:
    good = {"id": "a", "conversations": talk("Hi", "Ho")}
    path = write_lines(tmp_path / "rows.jsonl", ['{"id": ', '"a text"', {"id": "b"}, good])
    found = prepare([path], tmp_path / "out", max_bad_fraction=0.75)
    assert (found["rows"], found["rejected"]) == (1, 3)
    with pytest.raises(DataError, match="Broken JSON") as raised:
        prepare([write_lines(tmp_path / "broken.jsonl", ['{"id": '])], tmp_path / "none")
    assert raised.value.where == f"{tmp_path / 'broken.jsonl'}:1"


def test_rows_for_tests_are_never_trained_on(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_json(tmp_path / f"{name}.json", [{"id": name, "conversations": talk(f"{name}?", "Yes.")}])
    assert prepare([tmp_path], tmp_path / "out")["splits"] == {"train": 1, "test": 1}
    assert [row.id for row in load_samples(tmp_path, split="train", cache=tmp_path / "cache")] == ["train"]


def test_a_table_with_times_and_bytes_beside_the_text(tmp_path: Path) -> None:
    row = {"id": "a", "conversations": talk("Hi", "Ho"), "on": date(2020, 1, 2), "price": Decimal("1.20"), "raw": b"ab"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    prepare([tmp_path / "rows.parquet"], tmp_path / "out")
    assert load_samples(tmp_path / "out")[0].extra == {"on": "2020-01-02", "price": "1.20", "raw": "YWI="}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_that_breaks_off_between_two_rows(tmp_path: Path, mode: Any) -> None:
    path = tmp_path / "rows.tar"
    with tarfile.open(path, mode) as tar:
        for index in range(4):
            for ending, content in (("png", picture(tmp_path / "a.png").read_bytes()), ("txt", b"A cat.")):
                member = tarfile.TarInfo(f"{index}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    assert prepare([path], tmp_path / "out")["rows"] == 4
    content = path.read_bytes()
    path.write_bytes(content[: 8 * 1024] if mode == "w" else content[:-9])  # a header and a block a member
    with pytest.raises(DataError, match="breaks off"):
        prepare([path], tmp_path / "none")


def test_a_damaged_data_set_on_disk(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "There."}]
    Dataset.from_list([{"messages": messages}] * 4).save_to_disk(tmp_path / "saved")
    path = next((tmp_path / "saved").glob("*.arrow"))
    path.write_bytes(path.read_bytes().replace(b"Where", b"Wh\xffre"))
    with pytest.raises(DataError, match="damaged"):
        prepare([tmp_path / "saved"], tmp_path / "out")
