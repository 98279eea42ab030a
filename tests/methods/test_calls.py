"""A batch is one call of the encoder and one of the method's own part for each modality, however many rows it has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

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
