"""Benchmark files as they are found in the wild, and answers in every form they are handed in."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtune.core.errors import DataError, NotPossibleError, ScoreError, UsageError
from mmtune.data.sample import conversation
from mmtune.evaluation.benchmarks import BENCHMARKS
from mmtune.evaluation.benchmarks.base import Options, Place
from mmtune.evaluation.matching import match
from mmtune.evaluation.reading.pictures import MissingPicture
from mmtune.evaluation.run import Limits, evaluate, make_task


def picture(color: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = ["\t".join(rows[0]), *("\t".join(str(cell) for cell in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def choice(index: Any, **cells: Any) -> dict[str, Any]:
    row = {"index": index, "question": "Which?", "A": "one", "B": "two", "C": "", "answer": "A"}
    return row | {"category": "x", "image": picture("red")} | cells


def letters(path: Path, said: dict[Any, str], **options: Any) -> dict[str, Any]:
    rows = [{"index": index, "prediction": text} for index, text in said.items()]
    given = write_lines(path.parent / "p.jsonl", rows)
    return evaluate(benchmark="seedbench", data=path, predictions=given, **options)


def test_an_option_called_none_is_an_option(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.tsv", [choice(0, A="None", B="N/A", C="red"), choice(1)])
    task = make_task("seedbench", Options())
    assert task.read(Place(table)).samples[0].extra["options"] == {"A": "None", "B": "N/A", "C": "red"}
    as_pandas = make_task("seedbench", Options(pandas_na=True))
    assert as_pandas.read(Place(table)).samples[0].extra["options"] == {"C": "red"}
    said = {0: "A", 1: "A"}
    assert letters(table, said)["scores"]["none"]["Overall"] == 1
    assert letters(table, said, options=Options(pandas_na=True))["scores"]["none"]["Overall"] == 0.5


def test_numbers_with_blanks_beside_them_get_a_point_in_pandas(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.tsv", [choice(0, C="3"), choice(1)])
    for pandas_na, text in ((False, "3"), (True, "3.0")):
        sample = make_task("seedbench", Options(pandas_na=pandas_na)).read(Place(table)).samples[0]
        assert sample.extra["options"]["C"] == text


def test_pictures_of_tables(tmp_path: Path) -> None:
    red, blue = picture("red"), picture("blue")
    Image.new("RGB", (9, 9)).save(tmp_path / "here.png")
    cells = {7: red, 8: "7", 9: f"['{red}', '{blue}']", 10: "", 11: "8", 12: "here.png", 13: "gone.png"}
    table = write_table(tmp_path / "t.tsv", [choice(index, image=cell) for index, cell in cells.items()])
    found = {
        sample.id: [item.uri for item in sample.media]
        for sample in make_task("seedbench", Options()).read(Place(table)).samples
    }
    assert set(found) == {"7", "8", "9", "11", "12", "13"}  # a row without a picture is dropped
    assert found["7"] == found["8"] == [f"data:image;base64,{red}"]
    assert found["9"] == [f"data:image;base64,{red}", f"data:image;base64,{blue}"]
    assert isinstance(found["11"][0], MissingPicture)  # what it points to only points on
    assert found["12"] == [str(tmp_path / "here.png")]
    assert isinstance(found["13"][0], MissingPicture)


def test_a_table_of_picture_files(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    row = {name: cell for name, cell in choice(0).items() if name != "image"}
    table = write_table(tmp_path / "t.tsv", [row | {"image_path": "a.png"}])
    assert make_task("seedbench", Options()).read(Place(table)).samples[0].media[0].uri == str(tmp_path / "a.png")


def test_columns_in_capitals(tmp_path: Path) -> None:
    row = {name if len(name) == 1 else name.upper(): cell for name, cell in choice(0).items()}
    assert letters(write_table(tmp_path / "t.tsv", [row]), {0: "A"})["scores"]["none"]["x"] == 1


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([choice(1), choice(1)], "repeats the index 1"),
        ([choice(1), choice("01")], "repeats the index 01"),
        ([choice("")], "has no index"),
        ([choice(0, answer="")], "no gold answer"),
        ([{"index": 0, "answer": "A", "image": picture("red")}], "no 'question'"),
    ],
)
def test_tables_that_cannot_be_scored(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        letters(write_table(tmp_path / "t.tsv", rows), {0: "A"})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.tsv", "index\tquestion\n0\tx\ty\n", "3 cells, the header 2"),
        ("t.tsv", "index\tA\tA\n0\tx\ty\n", "'A' occurs twice"),
        ("t.tsv", "index\n", "no rows"),
        ("t.tsv", b"\xff\xfe\x00", "cannot be read"),
        ("t.parquet", "no table", "cannot be read"),
        ("t.json", "[", "Broken JSON"),
        ("t.json", '{"a": 1}', "not read from a JSON file"),
        ("t.json", "", "empty"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        evaluate(benchmark="textvqa", data=path, predictions=path)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds none of"):
        make_task("mme", Options()).read(Place(tmp_path))
    with pytest.raises(DataError, match="No such file"):
        make_task("mme", Options()).read(Place(tmp_path / "gone"))
    for name in ("MMBench_DEV_EN.tsv", "MMBench_DEV_CN.tsv"):
        write_table(tmp_path / name, [choice(0, question=name)])
    for name, language in (("mmbench", "EN"), ("mmbench_cn", "CN")):
        assert language in make_task(name, Options()).read(Place(tmp_path)).samples[0].turns[0].text
    inside = tmp_path / "data" / "ccbench"
    inside.mkdir(parents=True)
    write_table(inside / "CCBench.tsv", [choice(0)])
    assert len(make_task("ccbench", Options()).read(Place(tmp_path / "data")).samples) == 1


def rotations(index: int, answers: str) -> list[dict[str, Any]]:
    return [choice(index + at * 1_000_000, answer=answer) for at, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("benchmark", "file"),
    [
        ("pope", "mmmu/MMMU_DEV_VAL.tsv"),
        ("seedbench", "mme/MME.tsv"),
        ("textvqa", "pope/POPE.tsv"),
        ("mmbench", "mme/MME.tsv"),
    ],
)
def test_a_table_of_another_benchmark_is_refused(golden: Path, benchmark: str, file: str) -> None:
    data = golden / file
    with pytest.raises(DataError, match=f"no gold answer of the form that '{benchmark}' has"):
        evaluate(benchmark=benchmark, data=data, predictions=data.parent / "predictions.jsonl")


def test_json_of_another_benchmark_is_refused(golden: Path) -> None:
    for file in ("coco_caption/captions_val2014.json", "scienceqa/problems.json", "vizwiz/val.json"):
        with pytest.raises(DataError, match=r"of a form|of this form|has no"):
            evaluate(benchmark="gqa", data=golden / file, predictions=golden / "gqa" / "predictions.jsonl")


def test_an_incomplete_circle_is_left_out(tmp_path: Path) -> None:
    table = write_table(tmp_path / "MMBench_x.tsv", rotations(1, "AB") + rotations(2, "BA"))
    rows = [{"index": 1, "prediction": "A"}, {"index": 1000001, "prediction": "B"}, {"index": 2, "prediction": "B"}]
    given = write_lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match="1 of 4 rows have no prediction: 1000002"):
        evaluate(benchmark="mmbench", data=table, predictions=given)
    found = evaluate(benchmark="mmbench", data=table, predictions=given, limits=Limits(allow_partial=True))
    assert (found["n"], found["missing"], found["incomplete_groups"]) == (3, 1, 1)
    assert found["scores"]["none"]["Overall"] == 1
    assert evaluate(benchmark="mmbench", data=table, predictions=given, limit=1)["n"] == 2
    one = write_lines(tmp_path / "one.jsonl", rows[2:])
    with pytest.raises(DataError, match="No base question"):
        evaluate(benchmark="mmbench", data=table, predictions=one, limits=Limits(allow_partial=True))


def test_a_split_without_answers_is_written_for_submission(tmp_path: Path) -> None:
    table = write_table(tmp_path / "MMBench_TEST_EN.tsv", [choice(1, answer="")])
    given = write_lines(tmp_path / "p.jsonl", [{"index": 1, "prediction": "B"}])
    found = evaluate(benchmark="mmbench", data=table, predictions=given, output=tmp_path / "out")
    assert found["scores"] == {}
    assert "not public" in found["scorer"]
    sheet = (tmp_path / "out/vlmevalkit/model_MMBench_TEST_EN.tsv").read_text().splitlines()
    assert sheet[1].endswith('"B"')
    with pytest.raises(UsageError, match="no score"):
        evaluate(benchmark="mmbench", data=table, predictions=given, limits=Limits(min_score=0.1))


def test_failed_rows_are_wrong_even_where_silence_is_an_answer(tmp_path: Path) -> None:
    rows = [
        {"question_id": at, "image": "x.jpg", "text": "?", "label": label} for at, label in enumerate(("yes", "no"))
    ]
    data = write_lines(tmp_path / "coco_pope_random.json", rows)
    given = write_lines(tmp_path / "p.jsonl", [{"question_id": at, "error": {"message": "gone"}} for at in (0, 1)])
    with pytest.raises(DataError, match="All 2 rows failed"):
        evaluate(benchmark="pope", data=data, predictions=given)
    write_lines(given, [{"question_id": 0, "error": {"message": "gone"}}, {"question_id": 1, "text": "no"}])
    found = evaluate(benchmark="pope", data=data, predictions=given)
    assert (found["scores"]["random"]["accuracy"], found["failed"]) == (0.5, 1)
    with pytest.raises(DataError, match="1 rows failed, 0 are allowed"):
        evaluate(benchmark="pope", data=data, predictions=given, limits=Limits(max_failures=0))


def test_mme_says_which_categories_are_missing(tmp_path: Path) -> None:
    rows = [
        {"index": at, "image": picture("red"), "question": "?", "answer": answer, "category": "OCR", "image_path": "a"}
        for at, answer in enumerate(("Yes", "No"))
    ]
    table = write_table(tmp_path / "MME.tsv", rows)
    given = write_lines(tmp_path / "p.jsonl", [{"index": 0, "prediction": "yes"}, {"index": 1, "prediction": "no"}])
    found = evaluate(benchmark="mme", data=table, predictions=given)
    assert found["scores"]["perception"] == found["scores"]["total"] == found["scores"]["OCR"] == 200
    assert len(found["incomplete"]) == 13
    half = evaluate(benchmark="mme", data=table, predictions=given, limit=1)
    assert half["scores"]["OCR"] == 100  # half a pair is no pair


def test_hallusionbench_from_its_own_file(tmp_path: Path) -> None:
    row = {"category": "VD", "subcategory": "map", "visual_input": "1", "set_id": "0", "question": "?"}
    places = [("0", "0", "1"), ("1", "0", "0"), ("0", "1", "1")]
    rows = [
        {**row, "figure_id": figure, "question_id": asked, "gt_answer": gold, "filename": "./hallusion/VD/map.png"}
        for figure, asked, gold in places
    ]
    rows.append({**row, "visual_input": "0", "figure_id": "9", "question_id": "9", "gt_answer": "0", "filename": None})
    data = tmp_path / "HallusionBench.json"
    data.write_text(json.dumps(rows))
    said = {"VD_map_1_0_0_0": "Yes", "VD_map_1_0_1_0": "Yes", "VD_map_1_0_0_1": "Yes."}
    given = write_lines(tmp_path / "p.jsonl", [{"index": name, "prediction": text} for name, text in said.items()])
    found = evaluate(benchmark="hallusionbench", data=data, predictions=given)
    overall = found["scores"]["Overall"]
    assert (found["n"], overall["aAcc"], overall["fAcc"], overall["qAcc"]) == (3, pytest.approx(200 / 3), 50, 50)


def test_official_results_are_read_too(tmp_path: Path) -> None:
    rows = [conversation("a?", "x", id="1"), conversation("b?", "y", id="2")]
    given = tmp_path / "results.json"
    given.write_text(json.dumps([{"question_id": 1, "answer": "x"}, {"question_id": 2, "answer": "n"}]))
    assert evaluate(data=rows, predictions=given)["scores"]["exact_match"] == 0.5


def test_the_surest_name_of_a_row_wins() -> None:
    rows = [conversation("?", id="100"), conversation("?", id="107")]
    named = [type(row)(row.id, row.turns, "", {"names": {"image_id": row.id}}) for row in rows]
    given = [({"index": 100, "image_id": 107}, "second"), ({"index": 3, "image_id": 5}, "nobody")]
    assert match(given, named) == ({1: "second"}, 1)


def test_minimum_scores_are_compared_with_the_main_score(golden: Path) -> None:
    for benchmark, name in (("mmmu", "validation.Overall"), ("pope", "mean.f1"), ("coco_caption", "CIDEr")):
        folder = golden / benchmark
        with pytest.raises(ScoreError, match=name) as caught:
            evaluate(
                benchmark=benchmark, data=folder, predictions=folder / "predictions.jsonl", limits=Limits(min_score=1e4)
            )
        assert caught.value.result


def test_what_a_benchmark_does_not_have_is_refused() -> None:
    for name in BENCHMARKS.names():
        task = BENCHMARKS.load(name)
        assert task.name == name
        if "2024" not in task.rules:
            with pytest.raises(NotPossibleError, match="no rule '2024'"):
                make_task(name, Options(rule="2024"))
    with pytest.raises(UsageError, match="prompt style"):
        make_task("mme", Options(prompt="x"))


def test_scoring_loads_no_torch(golden: Path) -> None:
    import subprocess
    import sys

    folder = golden / "mmbench"
    code = (
        "import sys; from mmtune.evaluation.run import evaluate; "
        f"evaluate(benchmark='mmbench', data={str(folder)!r}, predictions={str(folder / 'predictions.jsonl')!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
