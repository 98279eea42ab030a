"""Every score, verdict and prompt equals that of the reference scorers and harnesses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmtune.core.errors import DataError
from mmtune.data.sample import Media
from mmtune.evaluation.benchmarks.base import Options, Place
from mmtune.evaluation.run import evaluate, make_task

MULTIPLE_CHOICE = ("mmbench", "ccbench", "scienceqa", "seedbench", "mmmu")
VLMEVALKIT = (*MULTIPLE_CHOICE, "mme", "hallusionbench")
OTHERS = {
    "pope": "llava_eval_pope (= official POPE evaluate.py)",
    "textvqa": "llava_eval_textvqa",
    "vqav2": "official_vqaEval (raw prediction)",
    "gqa": "official (llava convert_gqa_for_eval + exact equality)",
    "vizwiz": "official_vqaEval_code_on_vizwiz",
    "coco_caption": "official coco-caption (PTB tokenised, 0..1 / CIDEr x1)",
}
REFERENCES = dict.fromkeys(VLMEVALKIT, "vlmevalkit") | OTHERS


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected_scores(golden: Path, benchmark: str, key: str) -> Any:
    return json.loads((golden / benchmark / "expected_scores.json").read_text())[key]


def assert_equal(found: Any, expected: Any, path: str = "") -> None:
    """Every expected key is there, and numbers agree to the six digits that the files hold."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            assert name in found, f"{path}/{name} is missing"
            assert_equal(found[name], value, f"{path}/{name}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-6, rel=1e-6), path
    elif path != "/stdout":  # the name of the answers' file stands in it
        assert found == expected, path


def assert_each_has_an_interval(scores: Any, confidence: Any, prefix: str = "") -> None:
    """Counts have none; an interval around the score, or none for a single group of rows that belong together."""
    for name, value in scores.items():
        if isinstance(value, dict):
            assert_each_has_an_interval(value, confidence, f"{prefix}{name}.")
        elif isinstance(value, float):
            interval = confidence[f"{prefix}{name}"]
            assert interval["low"] is None or interval["low"] - 0.01 <= value <= interval["high"] + 0.01, name


@pytest.mark.parametrize("pandas_na", [False, True])
@pytest.mark.parametrize("benchmark", REFERENCES)
def test_scores(golden: Path, benchmark: str, pandas_na: bool) -> None:
    folder, options = golden / benchmark, Options(pandas_na=pandas_na)
    found = evaluate(benchmark=benchmark, data=folder, predictions=folder / "predictions.jsonl", options=options)
    assert_equal(found["scores"], expected_scores(golden, benchmark, REFERENCES[benchmark]))
    assert_each_has_an_interval(found["scores"], found["confidence"])
    assert (found["missing"], found["failed"]) == (0, 0)


@pytest.mark.parametrize("benchmark", MULTIPLE_CHOICE)
def test_scores_by_the_rule_of_2024(golden: Path, benchmark: str) -> None:
    folder = golden / benchmark
    found = evaluate(
        benchmark=benchmark, data=folder, predictions=folder / "predictions.jsonl", options=Options(rule="2024")
    )
    assert found["rule"] == "2024"
    assert_equal(found["scores"], expected_scores(golden, benchmark, "vlmevalkit_2024_rule"))


def test_second_scores(golden: Path) -> None:
    def scores(benchmark: str) -> Any:
        folder = golden / benchmark
        return evaluate(benchmark=benchmark, data=folder, predictions=folder / "predictions.jsonl")["scores"]

    for benchmark in ("mmbench", "ccbench"):
        vanilla = expected_scores(golden, benchmark, "vlmevalkit_PRINT_VANILLA")
        assert_equal(scores(benchmark), {name: table for name, table in vanilla.items() if name.startswith("vanilla")})
    key = "official MMMU parse+eval (validation; random fallback counted wrong)"
    assert_equal(scores("mmmu")["official"], expected_scores(golden, "mmmu", key))
    official = expected_scores(golden, "mme", "official_calculation_py (transcribed rule)")
    official["reasoning"] = official.pop("cognition")
    assert_equal(scores("mme")["official"], official)
    key = "official_vqaEval after llava convert_vqav2 (EvalAI processor on prediction)"
    assert_equal(scores("vqav2")["after_llava_convert"], expected_scores(golden, "vqav2", key))


FIELDS = {
    **{
        name: {"opt": "extracted", "row_correct": "hit", "official_correct": "official_hit"} for name in MULTIPLE_CHOICE
    },
    "mme": {"extracted": "extracted", "score": "score"},
    "hallusionbench": {"extracted": "extracted", "score": "score"},
    "pope": {"llava_pred": "extracted"},
    "textvqa": {"llava_score": "score", "llava_pred_normalised": "extracted"},
    "vqav2": {"official": "score"},
    "vizwiz": {"official_vqaEval": "score"},
    "gqa": {"official_submission": "extracted", "official_correct": "score"},
    "coco_caption": {
        "ptb_prediction": "extracted",
        "cider_official": "CIDEr",
        "rouge_official": "ROUGE_L",
        "bleu4_official": "Bleu_4",
    },
}
PERCENT = ("vqav2", "vizwiz")


@pytest.mark.parametrize("benchmark", REFERENCES)
def test_verdicts(golden: Path, tmp_path: Path, benchmark: str) -> None:
    folder = golden / benchmark
    evaluate(benchmark=benchmark, data=folder, predictions=folder / "predictions.jsonl", output=tmp_path)
    items = {item["id"]: item for item in read_lines(tmp_path / "items.jsonl")}
    if benchmark == "vizwiz":  # its official file has no index but the place
        items = {str(at): item for at, item in enumerate(items.values())}
    if benchmark == "coco_caption":
        places = {str(row["image_id"]): str(row["index"]) for row in read_lines(folder / "predictions.jsonl")}
        items = {places[name]: item for name, item in items.items()}
    compared = 0
    for row in read_lines(folder / "expected_items.jsonl"):
        item = items.get(str(row["index"]))
        if item is None:
            assert "note" in row or "opt" not in row, row  # without a picture, VLMEvalKit does not see it
            continue
        for theirs, ours in FIELDS[benchmark].items():
            if theirs in row:
                value = 100 * item[ours] if benchmark in PERCENT else item[ours]
                expected = pytest.approx(row[theirs], abs=0.006 if benchmark in PERCENT else 1e-6)
                assert value == (expected if isinstance(row[theirs], float) else row[theirs]), row
                compared += 1
        if "group_hit" in row:
            assert item["group_hit"] == row["group_hit"]
    assert compared >= len(items)


def shape(parts: Any) -> list[dict[str, str]]:
    return [{"type": "image"} if isinstance(part, Media) else {"type": "text", "value": part.text} for part in parts]


@pytest.mark.parametrize("benchmark", [name for name in REFERENCES if name != "seedbench"])
def test_prompts(golden: Path, benchmark: str) -> None:
    tables = {"coco_caption": "COCO_VAL.tsv", "gqa": "GQA_TestDev_Balanced.tsv", "textvqa": "TextVQA_VAL.tsv"}
    tables["vizwiz"] = "VizWiz.tsv"
    folder = golden / benchmark
    data = folder / tables[benchmark] if benchmark in tables else folder
    rows = {str(row["index"]): row for row in read_lines(folder / "expected_prompts.jsonl")}
    for style, key in (("llava", "vlmevalkit_llava"), ("vlmevalkit", "vlmevalkit_default")):
        task = make_task(benchmark, Options(prompt=style))
        samples = task.read(Place(data)).samples
        assert samples
        for sample in samples:
            row = rows[sample.id]
            if key in row:
                assert shape(sample.turns[0].parts) == row[key]
            elif benchmark == "vizwiz":
                text = row["lmms_eval_text"] if style == "llava" else row["vlmevalkit_default"][1]["value"]
                assert sample.turns[0].text == text
            elif benchmark == "vqav2":
                assert sample.turns[0].text == row["llava_text"]
            else:
                assert shape(sample.turns[0].parts) == row["vlmevalkit_default"]


FORMATS = {
    "mme": ["mme_test.parquet"],
    "gqa": [
        "testdev_balanced_questions.json",
        "GQA_TestDev_Balanced.tsv",
        "gqa_testdev_balanced_instructions.parquet",
    ],
    "coco_caption": ["COCO_VAL.tsv", "captions_val2014.json", "coco2014_cap_val.parquet"],
    "textvqa": ["TextVQA_0.5.1_val.json", "TextVQA_VAL.tsv", "textvqa_validation.parquet"],
    "vizwiz": ["val.json", "VizWiz.tsv", "llava_vizwiz_val.jsonl"],
    "vqav2": [
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_val2014_annotations.json",
        "vqav2_validation.parquet",
        "llava_vqav2.jsonl",
    ],
    "pope": ["POPE.tsv", "pope_test.parquet", "llava_pope_test.jsonl", "coco"],
}


@pytest.mark.parametrize(("benchmark", "name"), [(task, name) for task, names in FORMATS.items() for name in names])
def test_other_formats(golden: Path, benchmark: str, name: str) -> None:
    """The same answers score the same whatever form the questions come in."""
    folder = golden / benchmark
    official = benchmark == "pope" and name == "coco"  # ids of their own
    if benchmark == "mme":
        pairs = zip(read_lines(folder / "llava_mme.jsonl"), read_lines(folder / "predictions.jsonl"), strict=True)
        rows = [{"question_id": row["question_id"], "text": given["prediction"]} for row, given in pairs]
        given = folder / "by_question.jsonl"
        given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        given = folder / ("llava_answers.jsonl" if official else "predictions.jsonl")
    found = evaluate(benchmark=benchmark, data=folder / name, predictions=given)
    expected = expected_scores(golden, benchmark, REFERENCES[benchmark])
    assert_equal(found["scores"], expected)


@pytest.mark.parametrize(
    ("benchmark", "data"),
    [
        ("gqa", "llava_gqa_testdev_balanced.jsonl"),
        ("textvqa", "llava_textvqa_val_v051_ocr.jsonl"),
        ("textvqa", "."),
        ("pope", "llava_pope_test.jsonl"),
    ],
)
def test_llava_answers(golden: Path, benchmark: str, data: str) -> None:
    folder = golden / benchmark
    found = evaluate(benchmark=benchmark, data=folder / data, predictions=folder / "llava_answers.jsonl")
    assert_equal(found["scores"], expected_scores(golden, benchmark, REFERENCES[benchmark]))


def test_llava_seed_bench(golden: Path) -> None:
    folder = golden / "seedbench"
    printed = expected_scores(golden, "seedbench", "llava_convert_seed (exact equality)")
    lines = dict(line.rsplit(": ", 1) for line in printed)
    for name in ("SEED-Bench.json", "llava-seed-bench.jsonl", "seedbench_test.parquet"):
        found = evaluate(benchmark="seedbench", data=folder / name, predictions=folder / "llava_answers.jsonl")
        wanted = lines if "parquet" not in name else {key: lines[key] for key in lines if "accuracy" in key}
        assert {key: f"{found['scores'][key]:.2f}%" for key in wanted} == wanted


@pytest.mark.parametrize("name", ["problems.json", "llava_test_CQM-A.json"])
def test_llava_scienceqa(golden: Path, name: str) -> None:
    folder = golden / "scienceqa"
    found = evaluate(benchmark="scienceqa", data=folder / name, predictions=folder / "llava_answers.jsonl")["scores"]
    expected = expected_scores(golden, "scienceqa", "llava_eval_science_qa")
    assert_equal(found, {key: expected[key] for key in ("acc", "correct", "count", "img_acc")})
    table = expected_scores(golden, "scienceqa", "official_category_table (get_scores, preds = llava_pred_idx)")
    assert {key: f"{value:.2f}" for key, value in found["categories"].items()} == table


def test_questions_without_answers_say_what_is_missing(golden: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "llava_mme.jsonl"
    lonely.write_bytes((golden / "mme" / "llava_mme.jsonl").read_bytes())
    with pytest.raises(DataError, match="questions without answers"):
        evaluate(benchmark="mme", data=lonely, predictions=golden / "mme" / "predictions.jsonl")


def test_numbers_of_another_file_are_not_taken_for_the_official_ones(golden: Path) -> None:
    with pytest.raises(DataError, match="132 of 132 rows have no prediction"):
        evaluate(benchmark="pope", data=golden / "pope" / "coco", predictions=golden / "pope" / "predictions.jsonl")


def test_mmmu_from_hugging_face(golden: Path) -> None:
    folder = golden / "mmmu"
    found = evaluate(
        benchmark="mmmu", data=folder / "mmmu_validation.parquet", predictions=folder / "predictions.jsonl"
    )
    expected = expected_scores(golden, "mmmu", "vlmevalkit")["validation"]
    assert_equal(found["scores"]["validation"], expected)
    assert found["n"] == 72
