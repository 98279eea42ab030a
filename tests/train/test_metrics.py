"""The rows that a run writes of its steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmtune.core.errors import ResourceError
from mmtune.train.metrics import MetricsFile


def test_rows_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        with MetricsFile(path) as metrics:
            metrics.write({"step": step})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 2}]
    with MetricsFile(None) as nothing:
        nothing.write({"step": 3})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_also_when_the_file_is_closed() -> None:
    """The same command goes on, also with --overwrite, only where the run's status says so."""
    with pytest.raises(ResourceError, match="disk is full"), MetricsFile(Path("/dev/full")) as metrics:
        metrics.write({"step": 1})
