"""The quickstart's own work: stages in order, what is kept for the next call, and one method's failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmtune.core.errors import Interruption, NumericalError, UsageError
from mmtune.model.build import build_model
from mmtune.nano import course
from mmtune.nano import quickstart as module
from mmtune.nano.comparison import same_things
from mmtune.nano.quickstart import BUDGET, quickstart
from mmtune.train.display import LoggingDisplay
from mmtune.train.recipe import Recipe
from tests.tiny import save_tiny_lm, save_tiny_vision

SIZES = {"train": 12, "val": 4, "test": 16, "test_heldout": 8}
SMALL = {"every": 1, "rank": 4, "dim": 16, "heads": 2, "depth": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("base")
    return {"base": save_tiny_lm(folder / "lm"), "vision": save_tiny_vision(folder / "vision")}


class Trainer:
    """Stands for the training, in this process: saves a fresh model and says that it is done."""

    def __init__(self, base: dict[str, str], broken: str | None = None, error: Exception | None = None) -> None:
        self.base, self.broken, self.error = base, broken, error
        self.calls: list[tuple[str, str, str | None]] = []
        self.steps: dict[str, set[int | None]] = {}

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> Trainer:
        """Take the place of the training, and of the processes that it runs in."""
        monkeypatch.setattr(course, "train", self)
        monkeypatch.setattr(module, "apart", lambda work, display: work(display))
        return self

    def __call__(
        self, recipe: Recipe, *, verb: str, model: str | None, output: Path, display: Any, command: Any
    ) -> dict[str, Any]:
        self.calls.append((recipe.method, verb, model))
        self.steps.setdefault(verb, set()).add(recipe.train.max_steps)
        if recipe.method == self.broken and verb == "finetune" and self.error is not None:
            raise self.error
        assert recipe.data.train[0].path.endswith("pretrain" if verb == "pretrain" else "train")
        settings = SMALL if recipe.method == "vlora" else {}
        made, processor = build_model(
            base=self.base["base"], encoders={"image": self.base["vision"]}, method=recipe.method, settings=settings
        )
        made.save_pretrained(output / "model")
        processor.save_pretrained(output / "model")
        (output / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
        result = {"status": "completed", "run": str(output), "model": str(output / "model"), "seconds": 2.0}
        result |= {"trainable_parameters": 10, "loss": {"first": 2.0, "last": 1.0}}
        (output / "status.json").write_text(json.dumps(result))
        return result


def test_two_methods_are_measured_side_by_side_and_nothing_is_done_twice(
    base: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(base).stand_in(monkeypatch)
    found = quickstart(output=tmp_path / "out", sizes=SIZES, **base)
    assert [(method, verb) for method, verb, _ in trainer.calls] == [
        (method, verb) for method in ("llava", "vlora") for verb in ("pretrain", "finetune")
    ]
    assert trainer.calls[1][2] == str(tmp_path / "out/runs/llava-pretrain/model")
    assert trainer.steps == {verb: {steps} for verb, steps in BUDGET.items()}  # the same for all
    assert set(found) >= {"output", "report", "methods"}
    for result in found["methods"].values():
        assert set(result) >= {"scores", "baselines", "seconds", "run"}
        assert len(result["scores"]["types"]) == len(result["baselines"]["types"]["unbound"]) == 8
        assert result["scores"]["n"] == 16
        assert {"question_words", "blank_picture", "unbound", "held_out"} <= set(result["baselines"])
    assert json.loads(json.dumps(found)) == found
    report = Path(found["report"]).read_text()
    assert "VLoRA" in report
    assert "data:image/png;base64," in report
    assert "Which is better, and is it chance?" in report
    assert json.loads(Path(found["comparison"]).read_text())["budget"]["matched"] == found["matched"]
    assert "## Costs" in Path(found["markdown"]).read_text()
    assert (tmp_path / "out/runs/eval/vlora/test_heldout/scores.json").is_file()  # where `mmtune compare` finds it

    monkeypatch.setattr(module, "_compared", lambda work, done: None)
    again = quickstart(output=tmp_path / "out", sizes=SIZES, **base)
    assert len(trainer.calls) == 4
    assert again["methods"]["llava"]["scores"] == found["methods"]["llava"]["scores"]


def test_one_failure_is_reported_beside_the_other_method(
    base: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(base, "vlora", NumericalError("The loss is nan.", fix="lower it")).stand_in(monkeypatch)
    found = quickstart(output=tmp_path / "out", sizes=SIZES, **base)
    assert found["failed"] == ["vlora"]
    assert found["methods"]["vlora"]["error"]["exit"] == 6
    assert "scores" in found["methods"]["llava"]
    assert "The loss is nan." in Path(found["report"]).read_text()


def test_the_error_of_the_only_method_is_raised(
    base: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(base, "llava", NumericalError("The loss is nan.")).stand_in(monkeypatch)
    with pytest.raises(NumericalError):
        quickstart(("llava",), tmp_path / "out", sizes=SIZES, **base)


def test_an_interruption_is_none_of_a_methods_failures(
    base: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(base, "llava", Interruption("SIGTERM")).stand_in(monkeypatch)
    with pytest.raises(Interruption):
        quickstart(output=tmp_path / "out", sizes=SIZES, **base)
    trainer.error = None
    monkeypatch.setattr(module, "_compared", lambda work, done: None)
    assert quickstart(output=tmp_path / "out", sizes=SIZES, **base)["failed"] == []
    assert [call[:2] for call in trainer.calls].count(("llava", "pretrain")) == 1


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="no quickstart"):
        quickstart(output=tmp_path, sizes=SIZES)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_another_seed_in_the_same_folder_is_refused(
    base: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(base).stand_in(monkeypatch)
    quickstart(("llava",), tmp_path / "out", sizes=SIZES, progress=LoggingDisplay(), **base)
    with pytest.raises(UsageError, match="seed: 0 -> 1"):
        quickstart(("llava",), tmp_path / "out", seed=1, sizes=SIZES, **base)
    with pytest.raises(UsageError, match="steps: None -> "):  # what one method learnt alone is no part of a comparison
        quickstart(("llava", "vlora"), tmp_path / "out", sizes=SIZES, **base)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("a small red star at the top left and a big blue circle at the middle right.", True),
        ("a big blue circle at the middle right and a small red star at the top left", True),
        ("a big blue circle at the middle right.", False),
        ("a big red circle at the middle right and a small blue star at the top left.", False),
        ("", False),
    ],
)
def test_a_description_may_name_things_in_any_order(said: str, right: bool) -> None:
    gold = "a small red star at the top left and a big blue circle at the middle right."
    assert same_things({"prediction": said, "gold": gold}) == right
