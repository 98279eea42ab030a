"""A model is asked about every row; what fails is counted, and what was answered is never asked again."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmtune.core.errors import DataError
from mmtune.evaluation import collect as collecting
from mmtune.evaluation.benchmarks.base import Options
from mmtune.evaluation.run import Limits, evaluate
from mmtune.model.build import build_model
from mmtune.model.decoding import Decoding
from tests.tiny import save_tiny_lm, save_tiny_vision

SHORT = Decoding(max_new_tokens=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("tiny")
    base, vision = save_tiny_lm(folder / "lm"), save_tiny_vision(folder / "vision")
    return build_model(base=base, encoders={"image": vision}, method="llava")


def run(tiny: Any, golden: Path, benchmark: str, **options: Any) -> dict[str, Any]:
    data = options.pop("data", golden / benchmark)
    return evaluate(*tiny, benchmark=benchmark, data=data, decoding=SHORT, model_name="tiny", **options)


@pytest.mark.parametrize(
    ("benchmark", "limit"),
    [("mmbench", 2), ("mme", 4), ("pope", 6), ("hallusionbench", 4), ("mmmu", 4), ("scienceqa", 3), ("seedbench", 3)],
)
def test_tables_with_pictures_inside(tiny: Any, golden: Path, benchmark: str, limit: int) -> None:
    found = run(tiny, golden, benchmark, limit=limit)
    assert (found["failed"], found["missing"]) == (0, 0)
    assert found["n"] == limit if benchmark != "mmbench" else found["n"] > limit  # rotations come along
    assert found["output"] is None


def test_several_pictures_stand_where_the_question_names_them(tiny: Any, golden: Path) -> None:
    assert run(tiny, golden, "mmmu", limit=2, options=Options(prompt="vlmevalkit"))["failed"] == 0


def test_pictures_that_are_not_there_fail_their_rows_only(tiny: Any, golden: Path, tmp_path: Path) -> None:
    data = tmp_path / "testdev_balanced_questions.json"
    rows = json.loads((golden / "gqa" / data.name).read_text())
    data.write_text(json.dumps(dict(list(rows.items())[:4])))
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "img_000.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "img_002.jpg")
    found = run(tiny, golden, "gqa", data=data, output=tmp_path / "out")
    assert (found["n"], found["failed"], found["missing"]) == (4, 2, 0)
    items = [json.loads(line) for line in (tmp_path / "out/items.jsonl").read_text().splitlines()]
    assert [item["score"] for item in items if "error" in item] == [0, 0]
    assert "img_001" in items[1]["error"]["message"]
    with pytest.raises(DataError, match="1 rows failed, 0 are allowed"):
        run(tiny, golden, "gqa", data=data, limits=Limits(max_failures=0))
    with pytest.raises(DataError, match="All 4 rows failed"):
        run(tiny, golden, "gqa", data=golden / "gqa/testdev_balanced_questions.json", limit=4)


def test_conversations_with_missing_pictures_are_scored(tiny: Any, golden: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": name, "image": f"{name}.png", "conversations": turns} for name in ("there", "gone")]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    for benchmark in ("qa", "nll"):
        found = run(tiny, golden, benchmark, data=tmp_path / "data.json")
        assert (found["n"], found["failed"]) == (2, 1)
    given = tmp_path / "p.jsonl"
    given.write_text('{"id": "there", "prediction": "red"}\n{"id": "gone", "prediction": "red"}\n')
    found = evaluate(benchmark="qa", data=tmp_path / "data.json", predictions=given)
    assert (found["scores"]["exact_match"], found["failed"]) == (1.0, 0)  # nobody has to look


def test_a_killed_run_goes_on_to_the_same_scores(
    tiny: Any, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny, golden, "pope", limit=12, output=tmp_path / "whole", batch_size=2)
    ask, asked = collecting._ask, []

    def dying(*arguments: Any) -> Iterator[Any]:
        for count, found in enumerate(ask(*arguments)):
            if count == 5:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(collecting, "_ask", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, golden, "pope", limit=12, output=tmp_path / "killed", batch_size=2)
    log = tmp_path / "killed/predictions.jsonl"
    log.write_text(log.read_text()[:-20])  # the last line is torn

    def counting(*arguments: Any) -> Iterator[Any]:
        for found in ask(*arguments):
            asked.append(found[0])
            yield found

    monkeypatch.setattr(collecting, "_ask", counting)
    again = run(tiny, golden, "pope", limit=12, output=tmp_path / "killed", batch_size=3)
    assert len(asked) == 8
    assert {**again, "output": None} == {**whole, "output": None}
    for name in ("items.jsonl",):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_other_prompts_and_other_models_are_asked_anew(tiny: Any, golden: Path, tmp_path: Path) -> None:
    def lines() -> int:
        return len((tmp_path / "predictions.jsonl").read_text().splitlines())

    run(tiny, golden, "scienceqa", limit=3, output=tmp_path)
    run(tiny, golden, "scienceqa", limit=3, output=tmp_path)
    assert lines() == 3
    run(tiny, golden, "scienceqa", limit=3, output=tmp_path, options=Options(prompt="vlmevalkit"))
    assert lines() == 6
    evaluate(*tiny, benchmark="scienceqa", data=golden / "scienceqa", limit=3, output=tmp_path,
             decoding=Decoding(max_new_tokens=3))  # fmt: skip
    assert lines() == 9


def test_several_processes_share_the_work(tiny: Any, golden: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows have no prediction"):
        run(tiny, golden, "mme", limit=6, output=tmp_path, shard=(0, 2))
    found = run(tiny, golden, "mme", limit=6, output=tmp_path, shard=(1, 2))
    assert sorted(path.name for path in tmp_path.glob("predictions*")) == ["predictions.0.jsonl", "predictions.1.jsonl"]
    assert found["n"] == 6
    assert run(tiny, golden, "mme", limit=6, output=tmp_path)["scores"] == found["scores"]
    assert not (tmp_path / "predictions.jsonl").exists()


def test_the_output_is_for_people_and_for_vlmevalkit(tiny: Any, golden: Path, tmp_path: Path) -> None:
    found = run(tiny, golden, "mmbench", limit=3, output=tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"predictions.jsonl", "items.jsonl", "scores.json", "report.md", "report.html", "vlmevalkit"}
    assert json.loads((tmp_path / "scores.json").read_text()) == found
    assert "| dev.Overall |" in (tmp_path / "report.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert found["scorer"] in page
    assert page.count("data:image/") >= 1
    with (tmp_path / "vlmevalkit/tiny_MMBench_DEV_EN.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == found["n"]
    assert {"index", "question", "A", "answer", "split", "prediction"} <= set(rows[0])
    assert "image" not in rows[0]
