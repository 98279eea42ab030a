"""``train.compile``: the same losses, and what a method does inside of blocks is part of the compiled graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmtune.core.errors import NotPossibleError
from mmtune.methods import METHODS
from mmtune.model.modeling import MMTuneModel
from mmtune.testing.bench import open_bench
from mmtune.train.recipe import Recipe
from mmtune.train.run import train
from tests.train.test_processes import SETTINGS, rows

Make = Callable[..., Recipe]
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compare(recipe: Recipe, folder: Path) -> None:
    for name, compiles in (("eager", False), ("compiled", True)):
        changed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"compile": compiles})})
        train(changed, output=folder / name)
    for ours, theirs in zip(rows(folder / "eager"), rows(folder / "compiled"), strict=True):
        assert ours["rows"] == theirs["rows"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.names())
def test_compiled_runs_lose_as_much_as_eager_ones(
    method: str, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs of forward and backward as they are traced, before they become machine code."""
    compiled: list[nn.Module] = []

    def trace(self: nn.Module) -> None:
        compiled.append(self)
        nn.Module.compile(self, backend="aot_eager")

    monkeypatch.setattr(MMTuneModel, "compile", trace)
    shared: dict[str, Any] = {"tune__kind": "lora", "tune__dropout": 0.0, "train__max_steps": 3}
    compare(recipe(method, **shared, **SETTINGS.get(method, {})), tmp_path)
    assert len(compiled) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("method", METHODS.names())
def test_machine_code_too(method: str, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Code that a killed compiler left half written in the shared cache would be loaded.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    compare(recipe(method, train__max_steps=3, **SETTINGS.get(method, {})), tmp_path)


def test_checkpointing_is_refused(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(NotPossibleError, match="binds perception") as caught:
        train(recipe(train__compile=True, train__gradient_checkpointing=True), output=tmp_path / "run")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["vlora", "lavin"])
def test_hooks_are_part_of_the_graph(method: str) -> None:
    """One graph without a break, larger than the language model's own, and another picture needs no other one."""
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    with open_bench(method, dtype=torch.float32) as bench:
        model = bench.model
        bench.wake()
        ids = bench.batch([bench.row(0, [0])])["input_ids"].clamp(max=model.host.vocab_size - 1)
        compiled = torch.compile(model.language_model, backend=count, fullgraph=True)
        compiled(ids, use_cache=False)
        own = len(graphs[0].graph.nodes)
        for picture in (0, 1):
            media = bench.batch([bench.row(0, [picture])])["media"]
            perception = model.perceive(media, 1)
            with model.slot.bind(perception):
                expected = model.language_model(ids, use_cache=False).logits
                found = compiled(ids, use_cache=False).logits
            torch.testing.assert_close(found, expected)
        assert len(graphs) == 2
        assert len(graphs[1].graph.nodes) > own
