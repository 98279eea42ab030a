"""A run that is killed again and again, at random moments and while it saves, and goes on each time."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path


def main(recipe: str, output: str, kills: int) -> None:
    import torch

    import mmtune.train.run as run
    from mmtune.train.recipe import resolve

    torch.set_num_threads(1)
    chance, folder = random.Random(7), Path(output)
    killed = {"while saving": 0, "between": 0}
    for attempt in range(kills):
        child = os.fork()  # everything is imported already: a start costs nothing
        if child == 0:
            run.train(resolve("finetune", file=recipe), output=folder)
            os._exit(0)
        saving = attempt % 3 == 2
        wanted = _rows(folder) + chance.randint(2, 4)
        while not (_saves(folder) if saving else _rows(folder) >= wanted):
            if os.waitpid(child, os.WNOHANG)[0]:
                raise SystemExit("the run ended before it was killed often enough")
            time.sleep(0.001)
        if not saving:
            time.sleep(chance.random() * 0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed["while saving" if saving else "between"] += 1
    result = run.train(resolve("finetune", file=recipe), output=folder)
    (folder.parent / "killed.json").write_text(json.dumps({**killed, "resumed_from": result["resumed_from"]}))


def _rows(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def _saves(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".step-*.partial"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
