"""Golden checkpoints, each converted once for all tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmtune.convert import opening
from mmtune.convert.cases import Case
from mmtune.convert.layout import Layout
from mmtune.convert.run import convert
from mmtune.core.errors import MMTuneError, VerificationError
from tests.convert.originals import LLAVA, VLORA

SOURCES = {
    "llava-full": (LLAVA / "checkpoint", {}),
    "llava-stage1": (LLAVA / "stage1_llava_pretrain", {}),
    "llava-lora": (LLAVA / "llava_lora", {}),
    "llava-merged": (LLAVA / "llava_lora", {"to": "merged"}),
    "vlora-full": (VLORA / "checkpoint", {}),
    "vlora-stage1": (VLORA / "adapter", {"llm": str(VLORA / "checkpoint")}),
}


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("converted")

    def get(name: str) -> Path:
        if not (root / name).exists():
            source, options = SOURCES[name]
            result = convert(source, root / name, verify=False, **options)
            assert result["output"] == str(root / name)
        return root / name

    return get


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open written folders in this process: a fresh one takes seconds, and the tests marked ``afresh`` have it."""
    if "afresh" in request.keywords:
        return

    def evaluate(folder: Path, layout: Layout, cases: Sequence[Case]) -> list[Any]:
        try:
            return opening.evaluate(folder, layout.opened_as, layout.options, list(cases))
        except MMTuneError as error:
            raise VerificationError(error.message, where=error.where) from error

    monkeypatch.setattr("mmtune.convert.verify.evaluate_afresh", evaluate)
