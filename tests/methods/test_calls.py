"""A batch is one call of the encoder and one of the method's own part for each modality, however many rows it has, and
nothing else loops over rows either: a training step is so many tensor operations whatever their number."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from mmtune.testing.bench import open_bench, pictures
from mmtune.testing.encoders import TINY_ENCODERS
from tests.tiny import save_tiny_vision

PARTS = {"llava": "projector.{}", "multi_token": "projector.{}", "lavin": "projector", "vlora": "generator"}
KINDS = ("audio", "document", "embedding", "video")


@pytest.mark.parametrize("method", sorted(PARTS))
def test_a_batch_of_any_size_is_one_call(method: str) -> None:
    with open_bench(method) as bench:
        calls: Counter[str] = Counter()
        parts = {"encoder": bench.model.encoders["image"]}
        parts["method"] = bench.model.method.get_submodule(PARTS[method].format("image"))
        for name, module in parts.items():
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for rows in ([bench.row(0, [0])], bench.ragged(), bench.ragged() * 4):
            calls.clear()
            bench.logits(bench.batch(rows))
            assert calls == {"encoder": 1, "method": 1}, f"{len(rows)} rows"
        calls.clear()
        bench.logits(bench.batch([bench.row(0, []), bench.row(1, [])]))
        assert not calls, "rows without media"


class Operations(TorchDispatchMode):
    """Counts the tensor operations that run meanwhile, those of backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", sorted(PARTS))
def test_a_training_step_has_as_many_operations_for_any_number_of_rows(method: str) -> None:
    counts = set()
    with open_bench(method) as bench:
        bench.model.set_trainable(["method"])
        bench.model.train()
        for times in (1, 2, 5):
            batch = bench.batch(bench.ragged() * times)
            with Operations() as operations:
                bench.model(**batch).loss.backward()
            counts.add(operations.number)
            bench.model.zero_grad(set_to_none=True)
    assert len(counts) == 1, counts
    assert counts.pop() > 500


@pytest.mark.parametrize("method", ["llava", "multi_token"])
def test_each_modality_has_a_call_of_its_own(method: str, tmp_path: Path) -> None:
    encoders = {name: TINY_ENCODERS[name].save(tmp_path / name) for name in KINDS}
    items = {name: TINY_ENCODERS[name].items() for name in KINDS}
    encoders["image"], items["image"] = save_tiny_vision(tmp_path / "image"), pictures()
    with open_bench(method, encoders=encoders, items=items) as bench:
        calls: Counter[str] = Counter()
        for name in encoders:
            encoder, projector = bench.model.encoders[name], bench.model.method.get_submodule(f"projector.{name}")
            called = encoder.get_submodule("encoder") if name == "audio" else encoder  # Whisper's decoder rests
            called.register_forward_hook(lambda *_, what=f"encoder {name}": calls.update([what]))
            projector.register_forward_hook(lambda *_, what=f"projector {name}": calls.update([what]))
        bench.logits(bench.batch(bench.ragged() * 3))
        assert calls == {f"{part} {name}": 1 for part in ("encoder", "projector") for name in encoders}
