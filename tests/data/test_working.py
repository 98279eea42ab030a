"""Preparation by several processes, killed and taken up again; and raw data in the cache."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mmtune.core.errors import DataError, ResourceError, UsageError
from mmtune.data import working, workplace
from mmtune.data.dataset import load_samples
from mmtune.data.parts import PartMaker
from mmtune.data.prepare import prepare
from tests.data.rows import good_rows, picture, talk, write_json

OPTIONS: dict[str, Any] = {"split": "train=0.8,val=0.2", "max_bad_fraction": 0.2, "reject": ["duplicate"]}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(working, "_BLOCK_ROWS", 16)
    rows = [{"id": f"r{index}", "conversations": talk(f"What is {index}?", "That.")} for index in range(150)]
    rows[40]["conversations"] = talk("Hi", "")
    rows[90]["conversations"] = rows[3]["conversations"]
    return write_json(tmp_path / "data" / "rows.json", [*good_rows(tmp_path / "data", 6), *rows])


def _bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_equal_bytes_with_processes(source: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path / "one", **OPTIONS)
    prepare([source], tmp_path / "three", workers=3, **OPTIONS)
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "three")
    assert {"rejected.jsonl", "warnings.jsonl", "manifest.json", "train-00000.parquet"} <= set(_bytes(tmp_path / "one"))


def test_killed_and_taken_up_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare([source], tmp_path / "whole", **OPTIONS)
    make, made = PartMaker.make, []

    def counted(self: PartMaker, number: int, block: Any) -> int:
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(number)
        return make(self, number, block)

    monkeypatch.setattr(PartMaker, "make", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()
    (tmp_path / ".out.partial" / "parts" / "0000004.arrow").write_bytes(b"half")
    made.clear()
    with pytest.raises(KeyboardInterrupt):
        prepare([source], tmp_path / "out", **OPTIONS)
    assert made == [4, 5, 6, 7]
    monkeypatch.setattr(PartMaker, "make", make)
    needed: list[int] = []
    monkeypatch.setattr("mmtune.data.prepare.need_space", lambda folder, size: needed.append(size))
    prepare([source], tmp_path / "out", **OPTIONS)
    assert needed[0] < 2 * source.stat().st_size  # what is there already needs no space
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "whole")
    assert not (tmp_path / ".out.partial").exists()


def test_parts_that_a_power_failure_cut_are_made_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([source], tmp_path / "whole", **OPTIONS)

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mmtune.data.packing.Packing.write", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare([source], tmp_path / "out", **OPTIONS)
    parts = tmp_path / ".out.partial" / "parts"
    for name in ("0000001.arrow", "0000003.json"):
        (parts / name).write_bytes((parts / name).read_bytes()[:-20])
    prepare([source], tmp_path / "out", **OPTIONS)
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "whole")


def test_a_killed_process_leaves_parts_that_the_next_one_uses(source: Path, tmp_path: Path) -> None:
    rows = json.loads(source.read_text())
    write_json(source, [{**rows[index % 6], "id": f"k{index}"} for index in range(4_000)])
    code = (
        "import sys; from mmtune.data import working; from mmtune.data.prepare import prepare; "
        "working._BLOCK_ROWS = 16; prepare(sys.argv[1:2], sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    process = subprocess.Popen(command)
    parts = tmp_path / ".out.partial" / "parts"
    for _ in range(6000):
        if len(list(parts.glob("*.json"))) >= 2 or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert len(kept) >= 2
    subprocess.run(command, check=True)
    prepare([source], tmp_path / "whole")
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "whole")


def test_other_settings_begin_anew(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / ".out.partial" / "parts"
    folder.mkdir(parents=True)
    (folder / "0000000.json").write_text("{}")
    (folder.parent / "job.json").write_text("{}")
    assert prepare([source], tmp_path / "out", **OPTIONS)["rows"] > 100


def test_one_process_at_a_time(source: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".out.lock"), pytest.raises(UsageError, match="Another process"):
        prepare([source], tmp_path / "out", **OPTIONS)


def test_the_disk_is_asked_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workplace, "_SPARE_BYTES", 1 << 60)
    with pytest.raises(ResourceError, match="MB left"):
        prepare([source], tmp_path / "out", **OPTIONS)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data"]


def test_the_cache_says_hit_or_miss_and_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mmtune")
    path = write_json(tmp_path / "rows.json", good_rows(tmp_path, 6))

    def said(**options: Any) -> str:
        caplog.clear()
        table = load_samples(path, cache=tmp_path / "cache", **options)
        assert len(table) == 6
        return "\n".join(record.getMessage() for record in caplog.records if "data cache" in record.getMessage())

    assert "miss" in (first := said())
    assert "not used before" in first
    assert "hit" in said()
    assert "check_media was stat, is decode" in said(check_media="decode")
    rows = json.loads(path.read_text())
    write_json(path, [{**row, "id": f"x{row['id']}"} for row in rows])
    assert "the data has changed" in said()
    assert "hit" in said()
    picture(tmp_path / "pictures" / "0.png").write_bytes(b"another file")
    assert "0.png is gone or has changed" in said()
    os.utime(path)
    assert "hit" in said()


def test_a_smaller_budget_counts_on_a_hit_too(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", [*good_rows(tmp_path, 6), {"id": "bad", "conversations": []}])
    table = load_samples(path, cache=tmp_path / "cache", max_bad_fraction=0.5)
    assert (len(table), len(table.rejected)) == (6, 1)
    with pytest.raises(DataError, match="no_turns"):
        load_samples(path, cache=tmp_path / "cache")
