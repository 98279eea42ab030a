"""The target appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune.convert import target as target_module
from mmtune.convert.damage import read_json
from mmtune.convert.interruption import interruptible
from mmtune.convert.run import convert
from mmtune.convert.target import building, check_space, check_target
from mmtune.convert.tensors import open_folder
from mmtune.convert.writer import Entry, parse_size, plan_shards, sha256, write_manifest, write_weights
from mmtune.core.errors import Interruption, ResourceError, UsageError
from tests.convert.originals import LLAVA

SOURCE = LLAVA / "stage1_llava_pretrain"


def test_an_existing_target_needs_overwrite(tmp_path: Path) -> None:
    convert(SOURCE, tmp_path / "out", verify=False)
    with pytest.raises(UsageError, match="exists") as caught:
        convert(SOURCE, tmp_path / "out", verify=False)
    assert "--overwrite" in str(caught.value.fix)
    (tmp_path / "out" / "config.json").write_text("{}")
    convert(SOURCE, tmp_path / "out", verify=False, overwrite=True)
    assert read_json(tmp_path / "out" / "config.json")["method"] == "llava"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert(SOURCE, tmp_path / "out", verify=False)


def test_overwrite_never_deletes_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="something other"):
        convert(SOURCE, tmp_path / "out", verify=False, overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UsageError, match="no folder"):
        convert(SOURCE, tmp_path / "out" / "thesis.txt", verify=False, overwrite=True)


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    source = Path(shutil.copytree(LLAVA / "checkpoint", tmp_path / "model"))
    (source / "MANIFEST.json").write_text("{}")
    for place in (source, tmp_path / "model" / ".." / "model"):
        with pytest.raises(UsageError, match="its own source"):
            convert(source, place, verify=False, overwrite=True)
    (tmp_path / "MANIFEST.json").write_text("{}")
    with pytest.raises(UsageError, match="its own source"):
        check_target(tmp_path, [source], overwrite=True)


def test_a_failure_keeps_the_old_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(SOURCE, tmp_path / "out", verify=False)
    before = sha256(tmp_path / "out" / "adapter.safetensors")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mmtune.convert.pipeline.write_manifest", full)
    with pytest.raises(ResourceError, match="disk is full"):
        convert(SOURCE, tmp_path / "out", verify=False, overwrite=True)
    with pytest.raises(ResourceError, match="disk is full"):
        convert(SOURCE, tmp_path / "deep" / "er" / "out", verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sha256(tmp_path / "out" / "adapter.safetensors") == before


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interruption) as caught:
        convert(SOURCE, tmp_path / "out", verify=False, progress=interrupt)
    assert caught.value.exit_code == 75
    assert list(tmp_path.iterdir()) == []


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    previous = signal.getsignal(signal.SIGTERM)

    def terminate() -> None:
        with interruptible(tmp_path / "out"), building(tmp_path / "out") as folder:
            (folder / "part").write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interruption):
        terminate()
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is previous


def test_leftovers_of_a_killed_process_go_away(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    (tmp_path / f".out.mmtune-partial-{dead.stdout.strip()}").mkdir()
    (tmp_path / f".out.mmtune-partial-{os.getppid()}").mkdir()
    with building(tmp_path / "out"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"out", f".out.mmtune-partial-{os.getppid()}"}


def test_too_little_space_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    with pytest.raises(ResourceError, match="bytes free"):
        check_space(tmp_path / "not" / "there", 1000)


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("2GiB", 2**31), ("1.5 kb", 1500), ("100", 100)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GB", "-1GB", "5XB", "1e9"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def entry(name: str, tensor: torch.Tensor) -> Entry:
    return Entry(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def test_every_dtype_and_shape_survives(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(4).bfloat16(),
        "double": torch.randn(2, 2, 2).double(),
        "strided": torch.randn(4, 6).T,
        "long": torch.arange(3),
        "bool": torch.tensor([True, False]),
    }
    write_weights(tmp_path, "model", [entry(name, tensor) for name, tensor in tensors.items()], 80, lambda _: None)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    stored = open_folder(tmp_path)
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name].read(), tensor) for name, tensor in tensors.items())


def test_shards_hold_no_more_than_they_may() -> None:
    entries = [entry(str(index), torch.zeros(size)) for index, size in enumerate((10, 10, 100, 5, 5, 5))]
    assert [[item.name for item in shard] for shard in plan_shards(entries, 80)] == [["0", "1"], ["2"], ["3", "4", "5"]]


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"abc")
    write_manifest(tmp_path, {"schema": "mmtune/1"})
    files = read_json(tmp_path / "MANIFEST.json")["files"]
    assert files == {
        "sub/file": {"sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "bytes": 3}
    }
