"""Several runs, one after the other, in processes that share each of them; started by torchrun's module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mmtune.train.recipe import Recipe, dump

ROOT = Path(__file__).parents[2]


def train_together(recipes: Mapping[Path, Recipe], size: int = 2, timeout_s: float = 300) -> dict[Path, dict]:
    """Train each recipe in its folder in ``size`` processes; what the first process got, or the error's JSON."""
    jobs, process = start_together(recipes, size)
    _, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, errors[-4000:]
    return {Path(output): json.loads(Path(result).read_text()) for _, output, result in jobs}


def start_together(recipes: Mapping[Path, Recipe], size: int = 2) -> tuple[list[list[str]], subprocess.Popen[str]]:
    """Begin to train: the files of recipe, output and result of each run, and the process that starts the others."""
    folder = next(iter(recipes)).parent
    jobs = []
    for index, (output, recipe) in enumerate(recipes.items()):
        (folder / f"job-{index}.yaml").write_text(dump(recipe))
        jobs.append([str(folder / f"job-{index}.yaml"), str(output), str(folder / f"result-{index}.json")])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    process = subprocess.Popen(
        [*command, "-m", "tests.train.processes", str(folder / "jobs.json")], cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return jobs, process


def main(path: str) -> None:
    import torch

    from mmtune.core.errors import MMTuneError
    from mmtune.report import run as report
    from mmtune.train import run
    from mmtune.train.recipe import resolve
    from mmtune.train.run import train
    from mmtune.train.team import leave

    report.write_run_report = run.foreseen = lambda *given, **shown: None  # as `quick_runs` has it
    torch.set_num_threads(1)
    for recipe, output, result in json.loads(Path(path).read_text()):
        try:
            found = train(resolve("finetune", file=recipe), output=Path(output))
        except MMTuneError as error:
            found = {"error": error.to_json()}
        if os.environ["RANK"] == "0":
            Path(result).write_text(json.dumps(found, default=str))
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
