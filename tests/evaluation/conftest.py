"""The golden benchmark files, unpacked once."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

PACKED = Path(__file__).parents[1] / "golden" / "eval"


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a benchmark: its files, answers, and what the reference scorers made of them."""
    folder = tmp_path_factory.mktemp("golden_eval")
    for packed in PACKED.rglob("*.gz"):
        target = folder / packed.relative_to(PACKED).with_suffix("")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.decompress(packed.read_bytes()))
    return folder
