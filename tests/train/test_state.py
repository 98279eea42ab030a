"""Checkpoints: whole or not there, verified, rotated, and refused when the disk is full."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn

from mmtune.core.errors import ResourceError
from mmtune.train import files
from mmtune.train.state import (
    collect,
    find_checkpoint,
    list_checkpoints,
    random_state,
    remove_partial,
    restore_random,
    save_checkpoint,
)


def make() -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def save(root: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(root, step, collect(*make()), {"totals": {}, "random": [random_state()]}, keep=keep)


def test_a_checkpoint_restores_weights_moments_and_random_states(tmp_path: Path) -> None:
    model, optimizer = make()
    save_checkpoint(tmp_path, 7, collect(model, optimizer), {"x": 1, "random": [random_state()]}, keep=1)
    expected = torch.rand(3)
    other = nn.Linear(3, 2)
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    found, notes = find_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.state["x"], notes) == (7, 1, [])
    assert found.restore(other, fresh)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(fresh.state[other.weight]["exp_avg_sq"], optimizer.state[model.weight]["exp_avg_sq"])
    assert float(fresh.state[other.weight]["step"]) == 1.0
    assert torch.equal(torch.rand(3), expected)


def test_random_states_come_back() -> None:
    state = random_state()
    first = torch.rand(2)
    restore_random(state)
    assert torch.equal(torch.rand(2), first)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    weights = newest / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found, notes = find_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "step-000002 is damaged" in notes[0]
    (tmp_path / "step-000001" / "MANIFEST.json").unlink()
    found, notes = find_checkpoint(tmp_path)
    assert found is None
    assert "MANIFEST.json is missing" in notes[1]


def test_a_half_written_one_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-000001", tmp_path / ".step-000002.partial")
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000001"]
    remove_partial(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000001"]


def test_copies_and_notes_beside_them_are_no_checkpoints(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, 1), tmp_path / "step-000002.bak")
    (tmp_path / "step-why").write_text("a note")
    (tmp_path / "step-000003").write_text("a file")
    (save(tmp_path, 4) / "more.txt").write_text("whatever else lies there does not count")
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000004", "step-000001"]
    found, notes = find_checkpoint(tmp_path)
    assert (found and found.step, notes) == (4, [])


def test_what_was_about_to_be_replaced_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / ".step-000001.old")
    shutil.copytree(save(tmp_path, 2), tmp_path / ".step-000002.old")
    remove_partial(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-000001", "step-000002"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 50, 500):
        save(tmp_path, step)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000500", "step-000050"]


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(ResourceError, match="0 MB left") as caught:
        save(tmp_path, 2)
    assert caught.value.fix
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000001"]


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) == 1


def test_no_access_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        save(tmp_path / "file" / "checkpoints", 1)
