"""Pictures of URLs fetched beforehand: by img2dataset where it is installed, else by a stand-in for it."""

from __future__ import annotations

import functools
import http.server
import json
import sys
import threading
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtune.core.errors import DataError, MissingExtraError
from mmtune.data import bulk, diskarray
from mmtune.data.dataset import load_samples
from mmtune.data.prepare import prepare
from tests.data.rows import picture, write_json

INSTALLED = find_spec("img2dataset") is not None


class _Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    for index in range(4):
        picture(tmp_path / "web" / f"{index}.png", f"rgb({index},9,9)")
    _Quiet.asked.clear()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=tmp_path / "web")
    ) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}"
        web.shutdown()


def _stand_in(url_list: str, output_folder: str, **options: Any) -> None:
    """Writes what img2dataset writes with ``output_format="files"``: a table of keys beside a folder of files."""
    assert options["output_format"] == "files"
    assert options["disable_all_reencoding"]
    folder, rows = Path(output_folder) / "00000", []
    folder.mkdir(parents=True)
    for index, url in enumerate(pq.read_table(url_list)["url"].to_pylist()):
        row = {"key": f"{index:09d}", "url": url, "status": "success", "error_message": None}
        try:
            with urllib.request.urlopen(url) as answer:
                (folder / f"{row['key']}.png").write_bytes(answer.read())
            (folder / f"{row['key']}.json").write_text("{}")
        except urllib.error.HTTPError as error:
            row |= {"status": "failed_to_download", "error_message": str(error)}
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), f"{output_folder}/00000.parquet")


@pytest.fixture(
    params=["stand-in", pytest.param("img2dataset", marks=pytest.mark.skipif(not INSTALLED, reason="extra"))]
)
def fetcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "stand-in":
        module = types.ModuleType("img2dataset")
        module.download = _stand_in  # type: ignore[attr-defined]
        module.__spec__ = ModuleSpec("img2dataset", None)
        monkeypatch.setitem(sys.modules, "img2dataset", module)


@pytest.mark.usefixtures("fetcher")
def test_pictures_are_fetched_once_and_failures_rejected(server: str, tmp_path: Path) -> None:
    rows = [{"image_url": f"{server}/{index}.png", "capsfusion": f"Number {index}."} for index in (0, 1, 2, 9, 0)]
    path = write_json(tmp_path / "caps.json", rows)
    options = {"download": tmp_path / "pictures", "check_media": "decode"}
    with pytest.raises(DataError, match="download_failed 1"):
        prepare([path], tmp_path / "out", **options)
    found = prepare([path], tmp_path / "out", max_bad_fraction=0.2, **options)
    assert (found["rows"], found["reasons"], found["media_rules"]) == (4, {"download_failed": 1}, {"downloaded": 4})
    assert sum(asked == "/0.png" for asked in _Quiet.asked) == 1
    listed = (tmp_path / "pictures" / "failures.jsonl").read_text()
    assert json.loads(listed.splitlines()[0])["url"] == f"{server}/9.png"
    shown = [Path(sample.media[0].uri).read_bytes() for sample in load_samples(tmp_path / "out")]
    assert shown == [(tmp_path / "web" / f"{index}.png").read_bytes() for index in (0, 1, 2, 0)]


def test_urls_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_CHUNK", 7)
    monkeypatch.setattr(diskarray, "_PIECE", 5)
    urls = [f"http://a/{index * index % 23}.jpg" for index in range(60)]
    there = Path(bulk.url_file(tmp_path, urls[3]))
    there.parent.mkdir()
    there.write_bytes(b"picture")
    counts = bulk._write_list(iter(urls), tmp_path, tmp_path / "work" / "list.parquet")
    listed = pq.read_table(tmp_path / "work" / "list.parquet")["url"].to_pylist()
    assert listed == [url for url in dict.fromkeys(urls) if url != urls[3]]
    assert counts == (1, len(listed))


def test_gathering_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    urls = [f"http://a/{index}.jpg" for index in range(3)]
    _stand_in_files(tmp_path / "work" / "out", urls)
    (tmp_path / "urls").mkdir()
    first = tmp_path / "work" / "out" / "00000" / "000000000.jpg"
    first.rename(bulk.url_file(tmp_path, urls[0]))
    assert bulk._gather(tmp_path / "work", tmp_path) == (3, 0)
    assert all(Path(bulk.url_file(tmp_path, url)).read_bytes() == url.encode() for url in urls)


def _stand_in_files(folder: Path, urls: list[str]) -> None:
    (folder / "00000").mkdir(parents=True)
    rows = [{"key": f"{at:09d}", "url": url, "status": "success", "error_message": None} for at, url in enumerate(urls)]
    for row in rows:
        (folder / "00000" / f"{row['key']}.jpg").write_bytes(str(row["url"]).encode())
        (folder / "00000" / f"{row['key']}.json").write_text("{}")
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")


@pytest.mark.skipif(INSTALLED, reason="img2dataset is installed")
def test_without_the_extra(tmp_path: Path) -> None:
    path = write_json(tmp_path / "caps.json", [{"image_url": "http://127.0.0.1/0.png", "capsfusion": "x"}])
    with pytest.raises(MissingExtraError) as raised:
        prepare([path], tmp_path / "out", download=tmp_path / "pictures")
    assert raised.value.fix == 'pip install "mmtune[download]"'
