"""An evaluation counts everything, goes on where it stopped and refuses what it cannot score."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmtune.core.errors import DataError, ScoreError, UsageError
from mmtune.data.sample import Sample, conversation
from mmtune.evaluation.benchmarks.nll import negative_log_likelihood
from mmtune.evaluation.fingerprint import data_sha256, model_fingerprint
from mmtune.evaluation.run import Limits, evaluate
from mmtune.model.build import build_model
from mmtune.model.decoding import Decoding
from mmtune.model.generation import answer
from tests.tiny import save_tiny_lm, save_tiny_vision

KEYS = {"benchmark", "scorer", "rule", "scores", "n", "missing", "uninferred", "failed", "confidence", "model"}
KEYS |= {"data_sha256", "output"}
SHORT = Decoding(max_new_tokens=4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("tiny")
    base, vision = save_tiny_lm(folder / "lm"), save_tiny_vision(folder / "vision")
    return build_model(base=base, encoders={"image": vision}, method="llava")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A LLaVA json with pictures, types and a conversation with history."""
    rows = []
    for index in range(6):
        Image.new("RGB", (16, 16), (40 * index, 9, 9)).save(tmp_path / f"{index}.png")
        turns = [("human", f"<image>\nwhat {index}?"), ("gpt", f"red {index}.")]
        if index == 5:
            turns += [("human", "and now?"), ("gpt", "blue")]
        conversations = [{"from": speaker, "value": value} for speaker, value in turns]
        row = {"id": f"r{index}", "image": f"{index}.png", "type": "odd" if index % 2 else "even"}
        rows.append({**row, "conversations": conversations})
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    return path


def write_predictions(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def right_answers() -> list[dict[str, Any]]:
    golds = [*(f"red {index}" for index in range(5)), "Blue!"]
    return [{"id": f"r{index}", "prediction": gold} for index, gold in enumerate(golds)]


def test_given_predictions_are_scored_without_a_model(world: Path, tmp_path: Path) -> None:
    given = right_answers()
    given[1]["prediction"] = "it is red 1, I think"
    given[2] = {"index": "r2", "text": "green"}
    given.append({"id": "nobody", "prediction": "?"})
    found = evaluate(data=world, predictions=write_predictions(tmp_path / "p.jsonl", given), output=tmp_path / "out")
    assert set(found) >= KEYS
    assert found["scores"]["exact_match"] == pytest.approx(4 / 6)
    assert found["scores"]["contains"] == pytest.approx(5 / 6)
    assert found["scores"]["types"]["even"] == {"exact_match": 2 / 3, "contains": 2 / 3, "n": 3}
    assert (found["n"], found["missing"], found["failed"], found["ignored_predictions"]) == (6, 0, 0, 1)
    assert found["data_sha256"] == data_sha256(world)
    assert json.loads((tmp_path / "out/scores.json").read_text()) == found
    items = [json.loads(line) for line in (tmp_path / "out/items.jsonl").read_text().splitlines()]
    assert [item["exact_match"] for item in items] == [1, 0, 0, 1, 1, 1]


def test_missing_predictions_are_refused_unless_partial_is_allowed(world: Path, tmp_path: Path) -> None:
    given = write_predictions(tmp_path / "p.jsonl", right_answers()[:4])
    with pytest.raises(DataError, match="2 of 6 rows have no prediction: r4, r5"):
        evaluate(data=world, predictions=given)
    found = evaluate(data=world, predictions=given, limits=Limits(allow_partial=True))
    assert (found["n"], found["missing"], found["scores"]["exact_match"]) == (4, 2, 1.0)
    assert evaluate(data=world, predictions=given, limit=3)["n"] == 3


def test_rows_that_share_an_id_take_their_answers_in_order(tmp_path: Path) -> None:
    rows = [conversation("a?", "x", id="same"), conversation("b?", "y", id="same")]
    given = write_predictions(tmp_path / "p.jsonl", [{"id": "same", "prediction": word} for word in "xy"])
    assert evaluate(data=rows, predictions=given)["scores"]["exact_match"] == 1


def test_a_score_below_the_minimum_is_an_error_with_complete_output(world: Path, tmp_path: Path) -> None:
    given = write_predictions(tmp_path / "p.jsonl", [{**row, "prediction": "?"} for row in right_answers()])
    with pytest.raises(ScoreError, match=r"0\.0000.*0\.5000"):
        evaluate(data=world, predictions=given, output=tmp_path / "out", limits=Limits(min_score=0.5))
    assert (tmp_path / "out/scores.json").is_file()
    evaluate(data=world, predictions=given, limits=Limits(min_score=0.0))


@pytest.mark.parametrize(
    "line", ["{broken", "[1]", '{"id": "r0"}', '{"prediction": "x"}', '{"id": 1, "prediction": 2}']
)
def test_broken_predictions_name_the_line(world: Path, tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "r0", "prediction": "x"}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        evaluate(data=world, predictions=path)
    assert str(caught.value.where).endswith("p.jsonl:2")


def test_wrong_usage(world: Path, tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(UsageError, match=r"Allowed: ccbench, .*nll, pope, qa"):
        evaluate(benchmark="qq", data=world, predictions="p")
    with pytest.raises(UsageError, match="Neither"):
        evaluate(data=world)
    with pytest.raises(UsageError, match="needs a model"):
        evaluate(*tiny, benchmark="nll", data=world, predictions="p")
    with pytest.raises(UsageError, match="better when higher"):
        evaluate(*tiny, benchmark="nll", data=world, limits=Limits(min_score=1))
    with pytest.raises(DataError):
        evaluate(*tiny, data=tmp_path / "absent.json")


def test_a_model_is_asked_with_history_and_pictures(world: Path, tiny: Any) -> None:
    model, processor = tiny
    found = evaluate(model, processor, data=world, decoding=SHORT, model_name="tiny", batch_size=4)
    assert found["model"] == "tiny"
    assert (found["n"], found["failed"], found["output"]) == (6, 0, None)


def test_the_same_call_goes_on_where_it_was_interrupted(
    world: Path, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny
    options: dict[str, Any] = {"data": world, "decoding": SHORT, "output": tmp_path / "out", "batch_size": 1}
    done: list[int] = []

    def interrupt(count: int, total: int) -> None:
        done.append(count)
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, processor, **options, progress=interrupt)
    log = tmp_path / "out/predictions.jsonl"
    with log.open("a") as file:
        file.write('{"key": "torn')
    asked: list[int] = []
    found = evaluate(model, processor, **options, progress=lambda count, total: asked.append(count))
    assert asked == [5, 6]
    assert found["n"] == 6
    straight = evaluate(model, processor, **{**options, "output": tmp_path / "straight"})
    assert found["scores"] == straight["scores"]
    assert (tmp_path / "out/items.jsonl").read_text() == (tmp_path / "straight/items.jsonl").read_text()
    evaluate(model, processor, **{**options, "decoding": Decoding(max_new_tokens=3)})  # another decoding asks again
    assert len(log.read_text().splitlines()) == 4 + 1 + 2 + 6


def test_a_changed_model_is_asked_again(tiny: Any) -> None:
    model, _ = tiny
    before = model_fingerprint(model)
    assert before == model_fingerprint(model)
    weight = next(model.method.parameters())
    with torch.no_grad():
        weight[0] += 1e-3
        assert model_fingerprint(model) != before
        weight[0] -= 1e-3


def with_broken(samples: int = 3) -> list[Sample]:
    good = [conversation("what?", "red", id=f"g{index}") for index in range(samples - 1)]
    return [conversation("x" * 600, "red", id="long"), *good]


def test_failed_rows_count_as_wrong_and_the_rest_goes_on(tiny: Any, tmp_path: Path) -> None:
    model, processor = tiny
    found = evaluate(model, processor, data=with_broken(), decoding=SHORT, output=tmp_path)
    assert (found["n"], found["failed"]) == (3, 1)
    with pytest.raises(DataError, match="1 rows failed, 0 are allowed"):
        evaluate(model, processor, data=with_broken(), decoding=SHORT, limits=Limits(max_failures=0))
    with pytest.raises(DataError, match="All 1 rows failed"):
        evaluate(model, processor, data=with_broken(1), decoding=SHORT)


def test_nll_is_the_mean_over_target_tokens(world: Path, tiny: Any) -> None:
    model, processor = tiny
    found = evaluate(model, processor, benchmark="nll", data=world, batch_size=4)
    assert set(found) >= KEYS | {"nll", "items"}
    tokens = [item["num_tokens"] for item in found["items"]]
    assert found["nll"] == pytest.approx(sum(i["nll"] * i["num_tokens"] for i in found["items"]) / sum(tokens))
    assert [item["id"] for item in found["items"]] == [f"r{index}" for index in range(6)]
    assert found["confidence"]["nll"]["low"] <= found["nll"] <= found["confidence"]["nll"]["high"]
    assert tokens[5] > tokens[0]  # both answers of a conversation are targets
    single = evaluate(model, processor, benchmark="nll", data=world, batch_size=1)
    assert [item["nll"] for item in single["items"]] == pytest.approx(
        [item["nll"] for item in found["items"]], abs=1e-5
    )


def test_nll_equals_the_training_loss(tiny: Any) -> None:
    model, processor = tiny
    encoded = processor.encode(conversation("what is it?", "a red one"))
    batch = processor.collate([encoded])
    batch.pop("ids", None)
    record = negative_log_likelihood(model, processor, [encoded])[0]
    with torch.no_grad():
        assert record["nll"] == pytest.approx(float(model(**batch).loss), abs=1e-5)
    assert record["num_tokens"] == encoded.num_targets


def test_nll_records_rows_that_are_too_long(tiny: Any) -> None:
    found = evaluate(*tiny, benchmark="nll", data=with_broken())
    assert (found["failed"], len(found["items"])) == (1, 2)


def test_answers_of_an_evaluation_are_those_of_generate(tiny: Any, world: Path, tmp_path: Path) -> None:
    model, processor = tiny
    sample = conversation("what?", "red", id="0")
    evaluate(model, processor, data=[sample], decoding=SHORT, output=tmp_path / "out")
    row = json.loads((tmp_path / "out/predictions.jsonl").read_text())
    assert row["token_ids"] == answer(model, processor, [sample], SHORT)[0].token_ids
