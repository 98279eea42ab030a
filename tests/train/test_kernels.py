"""Kernels of others: refused where they cannot run, and a method's changes stay when forwards are replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmtune.core.errors import MissingExtraError, NotPossibleError
from mmtune.testing.bench import open_bench
from mmtune.train.kernels import refuse_kernels, use_kernels
from mmtune.train.recipe import Recipe
from mmtune.train.run import train

Make = Callable[..., Recipe]


def test_refused_without_the_library_and_off_cuda(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmtune.train.kernels.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as missing:
        train(recipe(train__kernels="liger"), output=tmp_path / "run")
    assert missing.value.fix == 'pip install "mmtune[liger]"'
    monkeypatch.setattr("mmtune.train.kernels.find_spec", lambda name: True)
    with pytest.raises(NotPossibleError, match="CUDA") as caught:
        train(recipe(train__kernels="liger"), output=tmp_path / "run")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()
    refuse_kernels(recipe(train__kernels="liger"), torch.device("cuda"))


def stand_in(patch: pytest.MonkeyPatch, families: list[str]) -> list[nn.Module]:
    """Liger's entry: every norm and MLP of an instance gets a ``forward`` of its own, which computes the same."""
    replaced: list[nn.Module] = []

    def apply(model: nn.Module, **options: Any) -> None:
        assert options == {"cross_entropy": False, "fused_linear_cross_entropy": False}
        for module in model.modules():
            if type(module).__name__.endswith(("RMSNorm", "MLP")):

                def forward(self: nn.Module, x: Tensor) -> Tensor:
                    replaced.append(self)
                    return type(self).forward(self, x)

                module.forward = MethodType(forward, module)

    contents = {
        "liger_kernel": {},
        "liger_kernel.transformers": {"_apply_liger_kernel_to_instance": apply},
        "liger_kernel.transformers.monkey_patch": {"MODEL_TYPE_TO_APPLY_LIGER_FN": dict.fromkeys(families)},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        patch.setitem(sys.modules, name, module)
    return replaced


@pytest.mark.parametrize("method", ["vlora", "lavin"])
def test_what_a_method_changes_stays(method: str, recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = stand_in(monkeypatch, ["llama"])
    with open_bench(method, dtype=torch.float32) as bench:
        bench.wake()
        rows = bench.ragged()
        before = bench.logits(bench.batch(rows))
        use_kernels(recipe(method, train__kernels="liger"), bench.model)
        after = bench.logits(bench.batch(rows))
        with bench.tokens_only():
            without = bench.logits(bench.batch(rows))
    assert replaced
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert not torch.allclose(after[0], without[0])


def test_a_family_without_kernels_is_named(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, ["qwen2"])
    with open_bench("llava") as bench, pytest.raises(NotPossibleError, match="'llama'"):
        use_kernels(recipe(train__kernels="liger"), bench.model)
