"""Golden checkpoints, each converted once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmtune.convert.run import convert
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
