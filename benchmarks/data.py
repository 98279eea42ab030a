"""How fast and small data preparation is: generated data, figures of this machine into ``benchmarks/results``.

    python -m benchmarks.data [json] [captions] [stat] [decode]

All of them without a name; they take up to 5 GB of the temporary folder, and everything generated is deleted again.
Memory is what processes have for themselves (anonymous pages, which is what can grow out of a machine), and with the
pages of files, which the system takes back when it needs them: of the largest process, workers included, and of all.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
_ROWS = 665_000
_CAPTIONS = 3_000_000
_FILES = 100_000
_PICTURES = 4_000
_WORDS = [
    "a",
    "cat",
    "sits",
    "on",
    "the",
    "red",
    "sofa",
    "near",
    "some",
    "window",
    "while",
    "rain",
    "falls",
    "and",
    "nobody",
    "looks",
    "at",
    "it",
]


def llava_json(path: Path, rows: int = _ROWS) -> None:
    """A file like LLaVA's mix665k: 1.0 GB, one line, some rows without a picture, talks of 1 to 6 rounds."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for index in range(rows):
            talk = []
            for turn in range(draw.choice((1, 2, 3, 4, 6))):
                question = f"{' '.join(draw.choices(_WORDS, k=12))} {index}?"
                talk.append({"from": "human", "value": ("<image>\n" if not turn and index % 16 else "") + question})
                talk.append({"from": "gpt", "value": " ".join(draw.choices(_WORDS, k=72))})
            row: dict[str, Any] = {"id": f"{index:012d}", "conversations": talk}
            if index % 16:
                row["image"] = f"coco/train2017/{index % 300_000:012d}.jpg"
            file.write((", " if index else "") + json.dumps(row))
        file.write("]")


def captions(folder: Path, rows: int = _CAPTIONS, files: int = 6) -> None:
    """CapsFusion-like tables of URLs and captions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw, per_file = random.Random(0), rows // files
    for number in range(files):
        with pq.ParquetWriter(folder / f"part-{number:03d}.parquet", _SCHEMA(pa)) as writer:
            for start in range(0, per_file, 50_000):
                numbers = range(number * per_file + start, number * per_file + min(start + 50_000, per_file))
                texts = [f"{' '.join(draw.choices(_WORDS, k=18))} {index}" for index in numbers]
                urls = [f"https://example.org/pictures/{index}.jpg" for index in numbers]
                writer.write_table(pa.table([urls, texts, texts, texts], schema=_SCHEMA(pa)))


def _SCHEMA(pa: Any) -> Any:
    return pa.schema([(name, pa.string()) for name in ("image_url", "capsfusion", "laion_2b", "laion_coco")])


def measured(command: list[str]) -> dict[str, Any]:
    """Run a command and watch it."""
    began, load, before = time.monotonic(), os.getloadavg()[0], _cpu_seconds()
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peaks: Counter[str] = Counter()

    def watch() -> None:
        while process.poll() is None:
            sizes = [_memory(one) for one in [process, *process.children(recursive=True)]]
            for kind in ("anonymous", "with_files", "highest"):
                peaks[f"{kind}_one"] = max(peaks[f"{kind}_one"], *(size[kind] for size in sizes))
                peaks[f"{kind}_all"] = max(peaks[f"{kind}_all"], sum(size[kind] for size in sizes))
            time.sleep(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    text = process.communicate()[0]
    thread.join()
    found = json.loads(text) if text else {}
    if process.returncode:
        message = (found.get("error") or {}).get("message", "no answer")
        sys.exit(f"{' '.join(command)} failed with {process.returncode}: {message}")
    return {
        "rows": found.get("rows"),
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(_cpu_seconds() - before, 1),
        "peak_anonymous_mb_one_process": round(peaks["anonymous_one"] / 1e6),
        "peak_anonymous_mb_all_processes": round(peaks["anonymous_all"] / 1e6),
        "peak_mb_one_process": round(peaks["highest_one"] / 1e6),
        "peak_mb_all_processes": round(peaks["with_files_all"] / 1e6),
        "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1),
    }


def _memory(process: psutil.Process) -> Counter[str]:
    """Bytes that a process has for itself, has with the pages of files, and had at most (VmHWM of Linux)."""
    try:
        now = process.memory_info()
        status = Path(f"/proc/{process.pid}/status")
        lines = status.read_text().splitlines() if status.is_file() else []
    except (psutil.Error, OSError):  # it has ended
        return Counter()
    highest = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), now.rss)
    return Counter(anonymous=now.rss - getattr(now, "shared", 0), with_files=now.rss, highest=highest)


def _cpu_seconds() -> float:
    """Of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _prepare(source: Path, output: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "mmtune", "prepare-data", str(source), "--output", str(output), "--json", *options]


def bench_json(folder: Path) -> dict[str, Any]:
    """665,000 rows of LLaVA json without a look at media."""
    path = folder / "mix.json"
    llava_json(path)
    size = path.stat().st_size
    return {"bytes": size, **measured(_prepare(path, folder / "out", "--check-media", "none"))}


def bench_stat(folder: Path) -> dict[str, Any]:
    """Files looked up and checked a second, in one process."""
    from mmtune.data.examination import examine
    from mmtune.data.media import MediaLookup
    from mmtune.data.sample import Media

    (folder / "pictures").mkdir()
    names = [f"pictures/{index:06d}.jpg" for index in range(_FILES)]
    for name in names:
        (folder / name).write_bytes(b"x")
    lookup, began = MediaLookup(folder), time.monotonic()
    for name in names:
        examine(Media("image", name), lookup.find(name), "stat")
    seconds = time.monotonic() - began
    return {"files": _FILES, "seconds": round(seconds, 2), "files_per_second": round(_FILES / seconds), "load": _load()}


def bench_decode(folder: Path) -> dict[str, Any]:
    """JPEGs of 640 x 480 decoded to see whether they can be, by all cores; and one by one with and without draft."""
    import numpy as np
    from PIL import Image

    from mmtune.modalities.pictures import open_picture, probe_picture

    noise = np.random.default_rng(0)
    rows = []
    for index in range(_PICTURES):
        name = f"{index:05d}.jpg"
        small = Image.fromarray(noise.integers(0, 255, (48, 64, 3), np.uint8))
        small.resize((640, 480)).save(folder / name, quality=90)
        talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"Number {index}."}]
        rows.append({"id": name, "image": name, "conversations": talk})
    (folder / "rows.json").write_text(json.dumps(rows))
    found: dict[str, Any] = {"pictures": _PICTURES}
    for kind, function in (("draft", probe_picture), ("full", open_picture)):
        began = time.monotonic()
        for row in rows[:1000]:
            function(str(folder / row["image"]))
        found[f"{kind}_per_second_one_core"] = round(1000 / (time.monotonic() - began))
    return found | measured(_prepare(folder / "rows.json", folder / "out", "--check-media", "decode"))


def bench_captions(folder: Path) -> dict[str, Any]:
    """A fifth of the caption rows, then all: memory must stay, time must grow five times."""
    found: dict[str, Any] = {}
    count = int(os.environ.get("MMTUNE_BENCH_CAPTIONS", _CAPTIONS))
    for name, rows in (("fifth", count // 5), ("all", count)):
        (folder / name).mkdir()
        captions(folder / name, rows)
        found[name] = measured(_prepare(folder / name, folder / f"{name}-out", "--allow-urls"))
    found["hours_for_30_million"] = round(found["all"]["seconds"] * (30e6 / count) / 3600, 2)
    found["processor_hours_for_30_million"] = round(found["all"]["cpu_seconds"] * (30e6 / count) / 3600, 2)
    return found


def _load() -> float:
    return round(os.getloadavg()[0], 1)


BENCHES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "json": bench_json,
    "captions": bench_captions,
    "stat": bench_stat,
    "decode": bench_decode,
}


def main(names: list[str]) -> None:
    """Run the benchmarks and keep their figures."""
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        sys.exit(f"No such benchmark: {', '.join(unknown)}. There are {', '.join(BENCHES)}.")
    path = RESULTS / "data.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for name in names or list(BENCHES):
        print(f"{name}: {BENCHES[name].__doc__}", flush=True)
        with tempfile.TemporaryDirectory(prefix="mmtune-bench-") as folder:
            results[name] = BENCHES[name](Path(folder)) | {"cores": os.cpu_count()}
        for key, value in results[name].items():
            print(f"  {key:32}{value}", flush=True)
        path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
