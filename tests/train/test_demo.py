"""The demo data is drawn once, into the cache that the recipe names."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from mmtune.core.errors import ResourceError
from mmtune.train.demo import cache_folder, demo_data


def test_it_is_drawn_once(tmp_path: Path) -> None:
    folder = demo_data(str(tmp_path), train=2)
    assert (folder / "train.json").is_file()
    before = (folder / "dataset.json").stat().st_mtime_ns
    assert demo_data(str(tmp_path), train=2) == folder
    assert (folder / "dataset.json").stat().st_mtime_ns == before


def test_a_cache_that_cannot_be_written_to_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        demo_data(str(tmp_path / "file"), train=2)


def test_without_a_name_a_home_that_cannot_be_written_to_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = demo_data(train=2)
    assert (folder / "dataset.json").is_file()
    assert folder.is_relative_to(tmp_path)


def test_without_a_name_it_is_the_platforms_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == Path("/some/cache/mmtune")
