"""``train.compile``: the same losses, and what a method does inside of blocks is part of the compiled graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtune.methods import METHODS
from mmtune.testing.bench import open_bench
from mmtune.train.recipe import Recipe
from mmtune.train.run import train
from tests.train.test_processes import SETTINGS, rows

Make = Callable[..., Recipe]
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("mmtune.report.run.write_run_report", lambda folder, **shown: None)
    torch.set_num_threads(1)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", METHODS.names())
def test_compiled_runs_lose_as_much_as_eager_ones(
    method: str, checkpointing: bool, recipe: Make, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"tune__kind": "lora", "tune__dropout": 0.0, "train__max_steps": 6}
    shared.update({"train__gradient_checkpointing": checkpointing}, **SETTINGS.get(method, {}))
    for name, compiles in (("eager", False), ("compiled", True)):
        train(recipe(method, **shared, train__compile=compiles), output=tmp_path / name)
    for ours, theirs in zip(rows(tmp_path / "eager"), rows(tmp_path / "compiled"), strict=True):
        assert ours["rows"] == theirs["rows"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE)


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
