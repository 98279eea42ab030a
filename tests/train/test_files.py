"""Files are written whole or not at all, and what cannot be written says where to write instead."""

from pathlib import Path

import pytest

from mmtune.core.errors import ResourceError
from mmtune.train.files import replacing, write_text


def test_a_file_takes_the_place_of_another_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert write_text(path, "old") == path
    write_text(path, "caf\udce9")
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text(encoding="utf-8") == "caf\\udce9"


def test_what_fails_half_way_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_the_error_names_the_option_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="Cannot write") as raised:
        write_text(tmp_path / "nowhere" / "page.html", "text", "--html")
    assert raised.value.fix == "choose a folder that you may write to with --html"
