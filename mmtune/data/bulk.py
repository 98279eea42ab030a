"""The pictures of rows with URLs, fetched beforehand by img2dataset: many at once, on one machine or a cluster.

Every picture lies under the hash of its URL, as :mod:`mmtune.data.download` keeps them too, so that rows of any format
find theirs. What is there already is not fetched again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmtune.core.errors import MissingExtraError, ResourceError
from mmtune.data.intake import Source
from mmtune.data.media import url_file
from mmtune.data.messages import RowError
from mmtune.data.reading import RawRow
from mmtune.data.sources import load_format

FAILURES = "failures.jsonl"
DISTRIBUTORS = ("multiprocessing", "pyspark", "ray")
_WEB = ("http://", "https://")


def urls_of(sources: Sequence[Source], keep: Callable[[int], bool] | None) -> Iterator[str]:
    """The URLs that rows name, each once."""
    seen: set[bytes] = set()
    rows: Iterator[tuple[Source, RawRow]] = ((source, row) for source in sources for row in source.rows())
    for number, (source, row) in enumerate(rows):
        if keep is not None and not keep(number):
            continue
        try:
            sample = load_format(source.format).parse(row.parsed(), str(number))
        except (RowError, AttributeError, TypeError):  # it is rejected, with its reason, when it is prepared
            continue
        for item in sample.media:
            if isinstance(item.uri, str) and item.uri.lower().startswith(_WEB):
                key = hashlib.sha256(item.uri.encode()).digest()[:12]
                if key not in seen:
                    seen.add(key)
                    yield item.uri


def download(
    urls: Iterator[str], folder: Path, *, processes: int, distributor: str = "multiprocessing", timeout_s: int = 20
) -> dict[str, int]:
    """Fetch pictures into ``folder``; failures are listed in ``failures.jsonl``.

    Args:
        distributor: ``multiprocessing`` for one machine; ``pyspark`` or ``ray`` for the cluster that these know.

    Returns:
        ``fetched``, ``failed`` and ``there`` (from an earlier call).

    Raises:
        MissingExtraError: img2dataset is not installed.
        ResourceError: The folder cannot be written to.
    """
    if importlib.util.find_spec("img2dataset") is None:
        raise MissingExtraError("Downloading pictures", "download")
    work = folder / ".img2dataset"
    try:
        (folder / "urls").mkdir(parents=True, exist_ok=True)
        there, wanted = _write_list(urls, folder, work / "list.parquet")
        if wanted:
            _fetch(work, processes, distributor, timeout_s)
        fetched, failed = _gather(work, folder)
        shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ResourceError(
            f"The pictures cannot be written: {error.strerror or error}.",
            where=str(folder),
            fix="choose another folder with --download",
        ) from error
    return {"fetched": fetched, "failed": failed, "there": there}


def _write_list(urls: Iterator[str], folder: Path, path: Path) -> tuple[int, int]:
    """Write the URLs whose pictures are not there; returns how many are and are not."""
    path.parent.mkdir(exist_ok=True)
    there = wanted = 0
    schema = pa.schema([("url", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        chunk: list[str] = []
        for url in urls:
            if Path(url_file(folder, url)).is_file():
                there += 1
                continue
            wanted += 1
            chunk.append(url)
            if len(chunk) == 1 << 16:
                writer.write_table(pa.table({"url": chunk}, schema=schema))
                chunk = []
        writer.write_table(pa.table({"url": chunk}, schema=schema))
    return there, wanted


def _fetch(work: Path, processes: int, distributor: str, timeout_s: int) -> None:
    """Have img2dataset fetch the list, the files as they are on the web."""
    from img2dataset import download as img2dataset

    img2dataset(
        url_list=str(work / "list.parquet"), input_format="parquet", url_col="url", output_folder=str(work / "out"),
        output_format="files", processes_count=processes, thread_count=32, resize_mode="no", timeout=timeout_s,
        disable_all_reencoding=True, incremental_mode="incremental", distributor=distributor, enable_wandb=False,
    )  # fmt: skip


def _gather(work: Path, folder: Path) -> tuple[int, int]:
    """Give the files that were fetched the names of their URLs, and list the failures."""
    fetched = failed = 0
    with (folder / FAILURES).open("a", encoding="utf-8") as failures:
        for path in sorted((work / "out").glob("*.parquet")):
            for row in pq.read_table(path, columns=["key", "url", "status", "error_message"]).to_pylist():
                files = [file for file in (work / "out" / path.stem).glob(f"{row['key']}.*") if _is_picture(file)]
                if row["status"] == "success" and files:
                    os.replace(files[0], url_file(folder, row["url"]))
                    fetched += 1
                    continue
                message = row["error_message"] or row["status"]
                failures.write(json.dumps({"url": row["url"], "text": str(message)}) + "\n")
                failed += 1
    return fetched, failed


def _is_picture(file: Path) -> bool:
    return file.suffix not in (".json", ".txt")
