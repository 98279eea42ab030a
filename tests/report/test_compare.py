"""Runs side by side: matched or not, ranked or not, and what is told when something is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mmtune.core.errors import DataError, UsageError
from mmtune.evaluation.run import Limits, evaluate
from mmtune.model.build import load
from mmtune.model.decoding import Decoding
from mmtune.report.compare import build as module
from mmtune.report.compare import costs
from mmtune.report.compare.budget import budget
from mmtune.report.compare.build import Compared, compare
from mmtune.report.compare.pareto import pareto
from mmtune.report.compare.runs import Run, read_runs
from mmtune.report.compare.view import budget_sentence, stages_sentence, verdict
from mmtune.report.compare.write import markdown, write_comparison
from mmtune.train.recipe import resolve
from mmtune.train.run import train
from tests.report.test_html import check
from tests.tiny import save_tiny_lm, save_tiny_vision

COLORS = ("red", "blue", "green", "pink")


def write_data(folder: Path, rows: int = 8) -> Path:
    found = []
    for number in range(rows):
        color = COLORS[number % len(COLORS)]
        Image.new("RGB", (20, 20), color).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat color?"}, {"from": "gpt", "value": color}]
        found.append({"id": f"row{number}", "image": f"{number}.png", "conversations": turns})
    path = folder / "data.json"
    path.write_text(json.dumps(found))
    return path


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, Path]:
    """Two methods under the same budget, one of them once more with another seed."""
    folder = tmp_path_factory.mktemp("work")
    base, vision = save_tiny_lm(folder / "lm"), save_tiny_vision(folder / "vision")
    made = {}
    for name, method, seed in (("a", "llava", 0), ("b", "vlora", 0), ("c", "llava", 1)):
        settings = {"model.settings": {"every": 1, "rank": 4, "dim": 16, "heads": 2, "depth": 1}}
        chosen = {"method": method, "model.base": base, "model.vision": vision, "data.train": [str(data)]}
        chosen |= {"train.seed": seed, "train.max_steps": 6, "train.batch_size": 4, "run.device": "cpu"}
        chosen |= {"train.epochs": 4, "data.cache": str(folder / "cache")}
        recipe = resolve("finetune", overrides={**chosen, **(settings if method == "vlora" else {})})
        made[name] = Path(train(recipe, verb="finetune", output=folder / "runs" / name)["run"])
    return made


@pytest.fixture
def scored(runs: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Evaluate a run as ``mmtune eval`` does, into the working directory's ``runs/eval``."""
    monkeypatch.chdir(tmp_path)

    def evaluated(name: str, **options: Any) -> None:
        model, processor = load(runs[name] / "model", device="cpu")
        output = Path("runs/eval") / f"qa_{name}{len(options)}"
        evaluate(
            model, processor, data=data, output=output, decoding=Decoding(max_new_tokens=4),
            model_name=str(runs[name] / "model"), **options,
        )  # fmt: skip

    return evaluated


@pytest.fixture(scope="module")
def counted() -> dict[tuple[Path, str], Any]:
    """The operations of a run, by its folder and recipe."""
    return {}


@pytest.fixture(autouse=True)
def _short_rounds(counted: dict[tuple[Path, str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured once, and the operations of each run are counted once for all tests."""
    count = costs.training_flops_per_sample

    def once(run: Run) -> Any:
        key = run.folder, (run.folder / "recipe.yaml").read_text()
        if key not in counted:
            counted[key] = count(run)
        return counted[key]

    monkeypatch.setattr(costs, "training_flops_per_sample", once)
    monkeypatch.setattr("mmtune.report.compare.speed.SECONDS", 0.0)
    monkeypatch.setattr("mmtune.report.compare.speed.ROUNDS", 1)


def compared(runs: dict[str, Path], *names: str) -> Compared:
    return compare([runs[name] for name in names], device="cpu")


def test_two_methods_under_one_budget(
    runs: dict[str, Path], scored: Callable[..., None], tmp_path: Path, data: Path
) -> None:
    scored("a")
    scored("b")
    found = compared(runs, "a", "b")
    result = found.result
    assert json.loads(json.dumps(result)) == result
    assert list(result["runs"]) == ["LLaVA", "VLoRA"]
    assert result["budget"]["matched"]
    assert result["budget"]["shared"]["seed"] == 0
    for figures in result["runs"].values():
        for key in (
            "trainable_parameters", "checkpoint_bytes", "peak_memory_bytes", "prefill_flops",
            "first_token_s", "tokens_per_second", "training_flops", "seconds", "tokens",
        ):  # fmt: skip
            assert figures[key] > 0, key
        assert figures["notes"] == []
    assert result["runs"]["LLaVA"]["visual_tokens"] > result["runs"]["VLoRA"]["visual_tokens"] == 0
    for curve in result["curves"].values():
        assert len(curve["loss"]) == 6
        assert all(len(curve[key]) == 6 and curve[key] == sorted(curve[key]) for key in ("tokens", "seconds", "flops"))
    (table,) = result["evaluations"]
    assert result["ranked"], result["reasons"]
    assert [row["n"] for row in table["rows"]] == [8, 8]
    assert table["rows"][0]["rank"] == 1
    (test,) = table["tests"]
    assert (test["n"], test["clusters"]) == (8, 8)
    assert {"bootstrap", "mcnemar", "p", "p_holm"} <= set(test)

    page, beside = write_comparison(found, tmp_path / "new" / "page.html")
    text = check(page)
    for part in ("Under a matched budget", "qa · data", "time to first token", "McNemar"):
        assert part in text
    assert beside.read_text() == markdown(found)
    assert "| trained parameters |" in beside.read_text()


def test_scores_made_under_other_conditions_are_not_ranked(runs: dict[str, Path], scored: Callable[..., None]) -> None:
    scored("a")
    scored("b", limit=5)
    result = compared(runs, "a", "b").result
    assert not result["ranked"]
    assert any("rows differs: LLaVA 8, VLoRA 5" in reason for reason in result["reasons"])
    (table,) = result["evaluations"]
    assert [row["rank"] for row in table["rows"]] == [None, None]
    assert table["tests"] == result["pareto"] == []

    scored("b")  # now there is one that both share, and one that is left over
    result = compared(runs, "a", "b").result
    assert [table["ranked"] for table in result["evaluations"]] == [True, False]


def test_evaluations_of_other_weights_are_left_out(runs: dict[str, Path], scored: Callable[..., None]) -> None:
    scored("a")
    scored("b")
    path = Path("runs/eval/qa_b0/scores.json")
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "model_fingerprint": "0" * 64}))
    found = compared(runs, "a", "b").result
    assert "other weights" in " ".join(found["runs"]["VLoRA"]["notes"])
    assert [row["run"] for row in found["evaluations"][0]["rows"]] == ["LLaVA"]
    assert not found["ranked"]
    path.write_text(json.dumps({name: value for name, value in result.items() if name != "contract"}))
    found = compared(runs, "a", "b").result
    assert "does not record its conditions" in " ".join(found["reasons"])


def test_runs_without_evaluations_of_another_seed(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = compared(runs, "a", "c")
    result = found.result
    assert list(result["runs"]) == ["a", "c"]  # the method alone does not tell them apart
    assert not result["ranked"]
    assert "mmtune eval" in result["reasons"][0]
    differing = {entry["what"]: entry["values"] for entry in result["budget"]["differences"]}
    assert differing["seed"] == {"a": 0, "c": 1}
    assert not result["budget"]["matched"]
    page, _ = write_comparison(found, tmp_path / "page.html")
    assert "Not under a matched budget" in check(page)


def test_what_is_no_finished_run_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run"):
        read_runs([runs["a"], tmp_path])
    with pytest.raises(DataError, match="no run") as caught:
        read_runs([runs["a"], runs["a"].parent / "bb"])
    assert str(runs["b"]) in str(caught.value.fix)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "status.json").write_text('{"status": "interrupted", "step": 3, "total_steps": 9}')
    (stopped / "command.txt").write_text("mmtune finetune --output stopped\n")
    with pytest.raises(DataError, match="after step 3 of 9") as caught:
        read_runs([stopped, runs["a"]])
    assert caught.value.fix == "continue it: mmtune finetune --output stopped"
    for wrong in ([runs["a"]], [runs["a"], runs["a"]]):
        with pytest.raises(UsageError):
            read_runs(wrong)


def test_a_run_whose_data_is_gone_is_compared_without_its_operations(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = runs["b"] / "recipe.yaml"
    before = recipe.read_text()
    recipe.write_text(before.replace("data.json", "gone.json"))
    try:
        result = compared(runs, "a", "b").result
    finally:
        recipe.write_text(before)
    assert result["runs"]["VLoRA"]["training_flops"] is None
    assert "no training operations" in result["runs"]["VLoRA"]["notes"][0]
    assert result["curves"]["VLoRA"]["flops"] == []


def test_the_front_holds_what_nothing_beats() -> None:
    rows = [
        {"run": name, "value": value, "low": None, "high": None} for name, value in zip("abc", (3, 2, 1), strict=True)
    ]
    table = {"ranked": True, "rows": rows, "title": "t", "score": "s", "higher_is_better": True}
    costs = {name: {"prefill_flops": cost} for name, cost in zip("abc", (9, 4, 5), strict=True)}
    (plot,) = pareto(table, costs)
    assert [point["front"] for point in plot["points"]] == [True, True, False]
    (plot,) = pareto({**table, "higher_is_better": False}, costs)
    assert [point["front"] for point in plot["points"]] == [False, True, True]


def test_the_verdict_names_what_chance_may_explain() -> None:
    def told(*values: float) -> str | None:
        pairs = zip(("ab", "ac", "bc"), values, strict=False)
        return verdict({"tests": [{"first": f, "second": s, "p_holm": p} for (f, s), p in pairs]})

    assert told() is None
    assert told(0.2) == "No difference is more than chance (p < 0.05)."
    corrected = "(p < 0.05 after Holm's correction for 3 pairs)"
    assert told(0.01, 0.01, 0.01) == f"Every difference is more than chance {corrected}."
    assert told(0.01, 0.3, 0.01) == f"Every difference is more than chance {corrected}, but for a and c."


def test_budgets_are_told_apart_by_the_rows_of_their_steps(runs: dict[str, Path]) -> None:
    first, second = read_runs([runs["a"], runs["b"]])
    assert budget([first, second])["matched"]
    second.rows[2]["rows"] = "00000000"
    found = budget([first, second])
    assert [entry["what"] for entry in found["differences"]] == ["rows of every step, in order"]
    for run in (first, second):
        del run.rows[0]["rows"]
    assert [entry["what"] for entry in budget([first, second])["differences"]] == [
        "rows of every step, in order (not recorded)"
    ]


def second_stage(first: Path, folder: Path) -> Path:
    """A copy of a run as a run that started from it; both lie in one folder."""
    shutil.copytree(first, folder / f"{first.name}-first")
    second = shutil.copytree(first, folder / f"{first.name}-second")
    recipe = yaml.safe_load((second / "recipe.yaml").read_text())
    checkpoint = str(folder / f"{first.name}-first" / "model")
    bases = {"base": "../../../lm", "vision": "../../../vision"}  # as the checkpoint names them
    recipe["model"] = {**bases, "checkpoint": checkpoint}
    (second / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return second


def test_what_came_before_counts(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    work = runs["a"].parent.parent / "staged"  # as deep as the runs: bases are named from there
    both = [second_stage(runs[name], work) for name in "ab"]
    result = compare(both, device="cpu").result
    assert result["budget"]["matched"]
    assert result["budget"]["shared"]["starts from"].startswith("6 steps of finetune")
    for figures in result["runs"].values():
        assert [stage["steps"] for stage in figures["stages"]] == [6, 6]
        assert figures["total"]["steps"] == 2 * figures["steps"] == 12
        assert figures["notes"] == []
        assert figures["total"]["training_flops"] == pytest.approx(2 * figures["training_flops"])
    assert "6 of finetune + 6 of finetune each" in str(stages_sentence(result))
    assert "in 12 steps (6 of finetune + 6 of finetune), the same rows" in budget_sentence(result)

    moved = work.rename(work.with_name("moved"))
    names = [moved / folder.name for folder in both]
    assert budget(read_runs(names))["matched"]  # the run before came along
    assert budget(read_runs([names[0], runs["b"]]))["differences"][0]["what"] == "starts from"
    status = json.loads((moved / "a-first" / "status.json").read_text())
    again = status | {"time": "2999-01-01T00:00:00+00:00"}
    (moved / "a-first" / "status.json").write_text(json.dumps(again))  # trained anew since
    assert budget(read_runs(names))["differences"][0]["what"] == "starts from"
    (moved / "a-first" / "status.json").write_text(json.dumps(status))
    metrics = moved / "b-first" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"rows": "', '"rows": "0'))
    assert [entry["what"] for entry in budget(read_runs(names))["differences"]] == ["starts from"]
    for name in "ab":
        shutil.rmtree(moved / f"{name}-first")
    differing = budget(read_runs(names))["differences"]  # of two weights whose past is unknown nothing can be said
    assert [entry["what"] for entry in differing] == ["starts from"]
    assert all("the checkpoint" in value for value in differing[0]["values"].values())


def test_large_models_are_measured_one_after_the_other(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmtune.report.compare.speed._Contestant.fits", lambda *_: False)
    result = module.compare([runs["a"], runs["b"]], device="cpu").result
    assert all(figures["first_token_s"] > 0 for figures in result["runs"].values())


@pytest.fixture
def evaluated(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Score answers that are given, the first ``right`` of 8 rightly, as ``mmtune eval --predictions`` does."""
    monkeypatch.chdir(tmp_path)

    def scored_answers(name: str, right: int, **options: Any) -> Path:
        rows = json.loads(data.read_text())
        said = [row["conversations"][1]["value"] if at < right else "black" for at, row in enumerate(rows)]
        given = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"id": row["id"], "prediction": text}) for row, text in zip(rows, said, strict=True)]
        given.write_text("\n".join(lines))
        output = tmp_path / "evaluated" / name
        evaluate(data=options.pop("data", data), predictions=given, output=output, **options)
        return output

    return scored_answers


def test_evaluations_are_compared_without_runs(
    evaluated: Callable[..., Path], runs: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    foreign = [evaluated("good", 8), evaluated("poor", 1)]
    found = compare(foreign)
    result = found.result
    assert json.loads(json.dumps(result)) == result
    assert (result["ranked"], result["runs"], result["budget"]) == (True, {}, None)
    (table,) = result["evaluations"]
    assert [(row["run"], row["rank"]) for row in table["rows"]] == [("good", 1), ("poor", 2)]
    assert table["given"] == ["good", "poor"]
    (test,) = table["tests"]
    assert test["mcnemar"] == {"only_first": 7, "only_second": 0, "p": pytest.approx(2 * 0.5**7)}
    assert test["bootstrap"]["difference"] == pytest.approx(-7 / 8)
    assert result["disagreements"]["total"] == 7
    page, beside = write_comparison(found, tmp_path / "page.html")
    text = check(page)
    assert text.count('class="card"') == text.count("picture of row") == 7
    for words in (text, beside.read_text()):
        assert "Answers of good and poor were given" in words
        assert "answers given" in words
        assert "Costs" not in words

    model, processor = load(runs["a"] / "model", device="cpu")
    output, decoding = tmp_path / "own", Decoding(max_new_tokens=4)
    evaluate(model, processor, data=data, output=output, decoding=decoding, model_name="mine")
    (table,) = compare([output, *foreign]).result["evaluations"]  # what is unknown is told and no difference
    assert (table["ranked"], table["given"]) == (True, ["good", "poor"])
    other = tmp_path / "longer"
    evaluate(model, processor, data=data, output=other, decoding=Decoding(max_new_tokens=5), model_name="mine")
    reasons = compare([output, other, foreign[0]]).result["reasons"]
    assert reasons == ["qa: decoding.max_new_tokens differs: own 4, longer 5"]


def test_evaluations_of_other_rows_are_not_ranked(evaluated: Callable[..., Path], tmp_path: Path) -> None:
    whole, part = evaluated("whole", 8), evaluated("part", 8, limit=5)
    (tmp_path / "other").mkdir()
    elsewhere = evaluated(
        "elsewhere", 8, data=write_data(tmp_path / "other", rows=9), limits=Limits(allow_partial=True)
    )
    found = compare([whole, part, elsewhere])
    assert not found.result["ranked"]
    told = " ".join(found.result["reasons"])
    assert "rows differs: whole 8, part 5, elsewhere 8" in told
    assert "data_sha256 differs" in told
    assert found.result["evaluations"][0]["tests"] == found.disagreements == []


def test_data_is_found_again_from_elsewhere_and_its_loss_is_told(
    evaluated: Callable[..., Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data.parent, tmp_path / "rows")
    two = [evaluated(name, right, data="rows/data.json") for name, right in (("one", 8), ("two", 4))]
    monkeypatch.chdir(tmp_path.parent)
    found = compare(two)
    assert found.result["evaluations"][0]["data_read"]
    assert all(row.sample is not None for row in found.disagreements)
    (tmp_path / "rows" / "data.json").write_text("[]")  # other data under the same name
    found = compare(two)
    assert found.result["evaluations"][0]["data_read"] is False
    assert "every row for itself" in markdown(found)
    assert [row.card().pictures for row in found.disagreements] == [()] * 4


def test_what_is_no_whole_evaluation_is_refused(evaluated: Callable[..., Path], runs: dict[str, Path]) -> None:
    good, poor = evaluated("good", 8), evaluated("poor", 1)
    for wrong in ([good], [good, good]):
        with pytest.raises(UsageError):
            compare(wrong)
    with pytest.raises(UsageError, match="is a run") as mixed:
        compare([runs["a"], good])
    assert str(mixed.value.fix).startswith(f"compare evaluations alone: mmtune compare DIR {good}, with DIR from")
    inside = shutil.copytree(poor, runs["a"] / "qa")
    try:
        with pytest.raises(UsageError) as mixed:
            compare([runs["a"], good])
    finally:
        shutil.rmtree(inside)
    assert mixed.value.fix == f"compare evaluations alone: mmtune compare {inside} {good}"
    with pytest.raises(UsageError, match="no speed"):
        compare([good, poor], picture="a.png")
    with pytest.raises(DataError, match="no output of an evaluation") as missing:
        compare([good, poor.with_name("pooor")])
    assert str(poor) in str(missing.value.fix)
    (poor / "items.jsonl").unlink()
    with pytest.raises(DataError, match="verdicts"):
        compare([good, poor])
    (poor / "scores.json").write_text("{")
    with pytest.raises(DataError, match="no scores"):
        compare([good, poor])
    (poor / "scores.json").unlink()
    (poor / "predictions.jsonl").touch()
    with pytest.raises(DataError, match="not finished"):
        compare([good, poor])
