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
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmtune.core.errors import MissingExtraError, ResourceError
from mmtune.data.diskarray import DiskArray, Numbers, grouped, in_order, lines_of
from mmtune.data.intake import Choice, Source
from mmtune.data.media import url_file
from mmtune.data.messages import RowError
from mmtune.data.sources import load_format

FAILURES = "failures.jsonl"
DISTRIBUTORS = ("multiprocessing", "pyspark", "ray")
_WEB = ("http://", "https://")
_LIST = pa.schema([("url", pa.string())])
_CHUNK = 1 << 14  # URLs that are in memory together


def urls_of(sources: Sequence[Source], choice: Choice) -> Iterator[str]:
    """The URLs that rows name."""
    for origin, number, row in choice.rows(sources):
        try:
            sample = load_format(sources[origin].format).parse(row.parsed(), str(number))
        except (RowError, AttributeError, TypeError):  # it is rejected, with its reason, when it is prepared
            continue
        for item in sample.media:
            if isinstance(item.uri, str) and item.uri.lower().startswith(_WEB):
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
    """Write the URLs whose pictures are not there, each once; returns how many are and are not."""
    path.parent.mkdir(exist_ok=True)
    everything = path.with_name("all.parquet")
    again = _spool(urls, everything)
    there = wanted = start = 0
    with pq.ParquetWriter(path, _LIST) as writer, pq.ParquetFile(everything) as table:
        for batch in table.iter_batches(_CHUNK):
            new = ~again[start : start + len(batch)]
            start += len(batch)
            found = batch.filter(pa.array(new))["url"].to_pylist()
            missing = [url for url in found if not Path(url_file(folder, url)).is_file()]
            there, wanted = there + len(found) - len(missing), wanted + len(missing)
            writer.write_table(pa.table({"url": missing}, schema=_LIST))
    everything.unlink()
    return there, wanted


def _spool(urls: Iterator[str], path: Path) -> Numbers:
    """Write all URLs; returns which of them stand further up already, ``[U]``."""
    hashes = DiskArray(path.parent, np.uint64, 3)
    with pq.ParquetWriter(path, _LIST) as writer:
        while chunk := list(islice(urls, _CHUNK)):
            digests = b"".join(hashlib.sha256(url.encode()).digest()[:16] for url in chunk)
            places = np.arange(len(hashes), len(hashes) + len(chunk))
            hashes.append(np.column_stack([np.frombuffer(digests, np.uint64).reshape(-1, 2), lines_of(places)]))
            writer.write_table(pa.table({"url": chunk}, schema=_LIST))
    again = DiskArray.full(path.parent, len(hashes), 0, bool).mapped()
    for lines, _ in grouped(in_order(hashes), 2):
        again[lines[:, 2]] = True
    return again


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
            pictures = _pictures(path.with_suffix(""))
            for row in pq.read_table(path, columns=["key", "url", "status", "error_message"]).to_pylist():
                target = Path(url_file(folder, row["url"]))
                if row["status"] == "success" and row["key"] in pictures:
                    os.replace(pictures[row["key"]], target)
                # What a call that was killed here had gathered is fetched too.
                if row["status"] == "success" and target.is_file():
                    fetched += 1
                    continue
                message = row["error_message"] or row["status"]
                failures.write(json.dumps({"url": row["url"], "text": str(message)}) + "\n")
                failed += 1
    return fetched, failed


def _pictures(folder: Path) -> dict[str, Path]:
    """The pictures of a folder that img2dataset wrote, by their keys."""
    files = folder.iterdir() if folder.is_dir() else ()
    return {file.name.partition(".")[0]: file for file in files if file.suffix not in (".json", ".txt")}
