"""Speed and size of the methods, each case in a process of its own:

    python benchmarks/methods.py [--quick] [--threads N] [--output benchmarks/results]

prints the tables and writes them to ``methods.md``, with every figure in ``methods.json``. Times are of the machine and
its load at that moment; both are noted beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tables import render

HERE = Path(__file__).parent
TEXTS = (32, 128, 512)
STEPS = {"nano": 20, "100m": 3}
BATCH = {"nano": 4, "100m": 1}
METHODS = ("llava", "multi_token", "vlora", "lavin")
PACKAGES = ("torch", "transformers", "peft", "accelerate")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the methods on nano and on a random 100M model.")
    parser.add_argument("--quick", action="store_true", help="short texts only, a third of the steps")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of each case")
    parser.add_argument("--base", choices=sorted(STEPS), action="append", help="only this base")
    parser.add_argument("--output", type=Path, help="folder for methods.md and methods.json [default: none]")
    arguments = parser.parse_args()
    environment = describe()
    results: dict[str, Any] = {"environment": {**environment, "threads": arguments.threads}, "cases": []}
    for case in planned(arguments.base or list(STEPS), arguments.quick, arguments.threads):
        print(f"{case['base']} {case['method']}, {case['text']} text tokens", file=sys.stderr, flush=True)
        results["cases"].append(run(case))
        if arguments.output is not None:  # after every case: an interrupted run keeps what it has
            write(results, arguments.output)
    print(render(results))


def write(results: dict[str, Any], folder: Path) -> None:
    """Put the tables and all figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "methods.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "methods.md").write_text(render(results), encoding="utf-8")


def planned(bases: list[str], quick: bool, threads: int) -> list[dict[str, Any]]:
    """The cases; the methods of a comparison follow each other, so that they meet the same load."""
    return [
        {
            "base": base,
            "method": method,
            "text": text,
            "batch_size": BATCH[base],
            "steps": STEPS[base] // 3 if quick else STEPS[base],
            "threads": threads,
        }
        for base in bases
        for text in (TEXTS[:1] if quick else TEXTS)
        for method in METHODS
    ]


def run(case: dict[str, Any]) -> dict[str, Any]:
    """One case in a fresh process, which this small one starts so that its peak memory is its own."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(HERE / "case.py"), json.dumps(case)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(case["threads"])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{case} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def describe() -> dict[str, Any]:
    """The machine, the versions and the commit."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "--short", "HEAD"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False)
    except OSError:  # no git here: the figures are good without a commit
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


if __name__ == "__main__":
    main()
