"""Memory and time of a large conversion: ``python benchmarks/convert.py --folder DIR`` (needs 19 GB of disk there).

Makes a synthetic Llama in Meta's layout, by default 6 GB in 4 shards, converts it with small output shards and without
verification, and compares with ``cp`` and ``sync`` of the same bytes in the same run. Everything is deleted after.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

WIDTH, FEED_FORWARD, HEADS, VOCABULARY = 3072, 8192, 24, 32000
SHARDS, SHARD_BYTES = 4, 500 * 10**6
BLOCK = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).mul(0.02).half()
EVERY_S = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "convert.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        found = measure(Path(name), options.gigabytes)
    options.result.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def measure(folder: Path, gigabytes: float) -> dict[str, Any]:
    source = folder / "source"
    make_checkpoint(source, gigabytes)
    num_bytes = sum(path.stat().st_size for path in source.glob("*.pth"))
    subprocess.run(["sync"], check=True)
    copying = copy(source, folder / "copy")
    shutil.rmtree(folder / "copy")
    converted, peak, seconds = convert(source, folder / "out")
    largest = VOCABULARY * WIDTH * 2
    limit = SHARD_BYTES + 3 * largest + 10**9
    return {
        "source_bytes": num_bytes,
        "shards": SHARDS,
        "max_shard_bytes": SHARD_BYTES,
        "largest_tensor_bytes": largest,
        "written_bytes": converted["bytes"],
        "peak_rss_anon_bytes": peak,
        "limit_rss_anon_bytes": limit,
        "copy_and_sync_s": round(copying, 2),
        "convert_s": round(seconds, 2),
        "ratio": round(seconds / copying, 2),
        "cores": psutil.cpu_count(),
    }


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """Shards with the slices of each tensor, as model parallel training leaves them."""
    folder.mkdir()
    in_block = 4 * WIDTH * WIDTH + 3 * WIDTH * FEED_FORWARD
    layers = round((gigabytes * 10**9 / 2 - 2 * VOCABULARY * WIDTH) / in_block)
    params = {"dim": WIDTH, "n_layers": layers, "n_heads": HEADS, "norm_eps": 1e-5, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params))
    for shard in range(SHARDS):
        state = {
            "tok_embeddings.weight": values(VOCABULARY, WIDTH // SHARDS),
            "norm.weight": torch.ones(WIDTH).half(),
            "output.weight": values(VOCABULARY // SHARDS, WIDTH),
        }
        for layer in range(layers):
            prefix = f"layers.{layer}."
            state |= {f"{prefix}attention.w{kind}.weight": values(WIDTH // SHARDS, WIDTH) for kind in "qkv"}
            state[f"{prefix}attention.wo.weight"] = values(WIDTH, WIDTH // SHARDS)
            state |= {f"{prefix}feed_forward.w{n}.weight": values(FEED_FORWARD // SHARDS, WIDTH) for n in (1, 3)}
            state[f"{prefix}feed_forward.w2.weight"] = values(WIDTH, FEED_FORWARD // SHARDS)
            state |= {f"{prefix}{kind}_norm.weight": torch.ones(WIDTH).half() for kind in ("attention", "ffn")}
        torch.save(state, folder / f"consolidated.{shard:02d}.pth")


def values(rows: int, columns: int) -> Tensor:
    count = rows * columns
    return BLOCK.repeat(-(-count // len(BLOCK)))[:count].view(rows, columns).clone()


def copy(source: Path, target: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync"], check=True)
    return time.perf_counter() - began


def convert(source: Path, target: Path) -> tuple[dict[str, Any], int, float]:
    """The result of the verb, its process's largest anonymous memory, and its time from start to end."""
    command = [sys.executable, "-m", "mmtune", "convert", str(source), "--output", str(target), "--to", "hf"]
    command += ["--max-shard-size", f"{SHARD_BYTES // 10**6}MB", "--no-verify", "--json", "--quiet"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(EVERY_S)
    seconds = time.perf_counter() - began
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"convert ended with {process.returncode}: {output}")
    return json.loads(output), peak, seconds


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process: pages of mapped files do not count."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    main()
