"""Look-up of media: the order of the rules, what is refused, and what is allowed on request."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmtune.core.errors import MediaError, UsageError
from mmtune.data.download import fetch
from mmtune.data.media import MediaLookup, data_uri_bytes
from mmtune.data.messages import RowError
from tests.data.rows import picture


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("data", "root", "work", "outside")}
    for folder in found.values():
        folder.mkdir()
    monkeypatch.chdir(found["work"])
    return found


def _reason(lookup: MediaLookup, uri: object) -> str:
    with pytest.raises(RowError) as raised:
        lookup.find(uri)
    return raised.value.reason


def test_order_of_the_rules(places: dict[str, Path]) -> None:
    lookup = MediaLookup(places["data"], [places["root"]])
    rules = []
    for name in ("work", "root", "data"):
        picture(places[name] / "a.png")
        found = lookup.find("a.png")
        assert found.path == str(places[name] / "a.png")
        rules.append(found.rule)
    assert rules == ["working-directory", f"media-root:{places['root']}", "beside-data"]


def test_another_ending_is_found_and_reported(places: dict[str, Path]) -> None:
    picture(places["root"] / "ocr" / "1.jpg")
    found = MediaLookup(places["data"], [places["root"]]).find("ocr/1.gif")
    assert found.path == str(places["root"] / "ocr" / "1.jpg")
    assert found.rule.endswith("other ending")


def test_paths_that_leave_the_roots(places: dict[str, Path]) -> None:
    inside = picture(places["root"] / "a.png")
    outside = picture(places["outside"] / "b.png")
    lookup = MediaLookup(places["data"], [places["root"]])
    assert lookup.find(str(inside)).path == str(inside)
    assert lookup.find("../root/a.png").path == str(inside)
    assert lookup.find("x/../../root/a.png").rule == f"media-root:{places['root']}"
    for uri in (str(outside), "../outside/b.png", f"file://{outside}"):
        assert _reason(lookup, uri) == "path_outside"
        allowed = MediaLookup(places["data"], allow_outside=True)
        assert allowed.find(uri).path == str(outside)


def test_a_link_that_the_owner_made_is_followed(places: dict[str, Path]) -> None:
    picture(places["outside"] / "b.png")
    os.symlink(places["outside"], places["data"] / "linked")
    assert MediaLookup(places["data"]).find("linked/b.png").rule == "beside-data"


def test_urls_need_leave(places: dict[str, Path], tmp_path: Path) -> None:
    url = "https://example.org/a.png"
    assert _reason(MediaLookup(places["data"]), url) == "url_refused"
    assert MediaLookup(places["data"], allow_urls=True).find(url).rule == "url"
    with pytest.raises(MediaError, match="URL"):
        fetch(url, None, allowed=False, where="row")
    with pytest.raises(MediaError, match="cannot be fetched"):
        fetch("http://127.0.0.1:9/none.png", str(tmp_path), allowed=True, where="row")


def test_what_is_missing_says_where_it_was_sought(places: dict[str, Path]) -> None:
    with pytest.raises(RowError) as raised:
        MediaLookup(places["data"], [places["root"]]).find("c.png")
    for name in ("data", "root", "work"):
        assert str(places[name] / "c.png") in raised.value.message


def test_no_look_takes_the_first_root(places: dict[str, Path]) -> None:
    found = MediaLookup(places["data"], look=False).find("c.png")
    assert (found.path, found.rule) == (str(places["data"] / "c.png"), "unchecked")


def test_a_media_root_must_exist(places: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        MediaLookup(places["data"], ["nowhere"])


def test_data_uri() -> None:
    assert data_uri_bytes("data:image/png;base64,aGk=") == b"hi"
    with pytest.raises(RowError):
        data_uri_bytes("data:image/png;base64,")
