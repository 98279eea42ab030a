"""What it costs to feed pictures, and what kept features save:

    python benchmarks/feeding.py [--threads N] [--output benchmarks/results]

prints the figures and writes them to ``feeding.md`` and ``feeding.json``. Pictures are JPEGs of 640 x 480 with noise,
prepared for CLIP ViT-L/14-336. The rate of one worker is in processor seconds, which other programs hardly change;
steps are those of real runs of a random language model with a random ViT, whose own figures for waiting are taken.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from methods import describe
from PIL import Image, ImageFilter
from tables import machine, table
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from mmtune.modalities.image import ImageModality
from mmtune.modalities.pictures import open_picture
from mmtune.testing.tiny import save_tiny_lm
from mmtune.train.features import FeatureStore, KeptModality
from mmtune.train.recipe import resolve
from mmtune.train.run import train

SIDE, PATCH = 336, 14
VISION = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
LANGUAGE = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 6, "max_position_embeddings": 2048,
}  # fmt: skip
ROWS, BATCH, EPOCHS = 6, 1, 2
RUNS: dict[str, dict[str, Any]] = {
    "no worker": {"data.workers": 0},
    "one worker": {"data.workers": 1},
    "one worker, features kept": {"data.workers": 1, "data.cache_features": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how fast pictures are fed, and what kept features save.")
    parser.add_argument("--threads", type=int, default=1, help="threads of the steps [default: 1]")
    parser.add_argument("--output", type=Path, help="folder for feeding.md and feeding.json [default: none]")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.INFO)
    before = psutil.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        data = write_data(Path(scratch))
        vision, base = write_models(Path(scratch))
        found: dict[str, Any] = {"rates": rates(Path(scratch), vision)}
        found["runs"] = {name: run(Path(scratch), name, base, vision, data) for name in RUNS}
    found["load"] = [round(before, 2), round(psutil.getloadavg()[0], 2)]
    results = {"environment": {**describe(), "threads": arguments.threads}, "cases": [found]}
    if arguments.output is not None:
        (arguments.output / "feeding.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (arguments.output / "feeding.md").write_text(render(results), encoding="utf-8")
    print(render(results))


def write_data(folder: Path) -> Path:
    """Pictures with as much detail as photographs have, about 100 kB each, and a row for each."""
    rows = []
    for index in range(ROWS):
        noise = np.random.default_rng(index).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)).save(folder / f"{index}.jpg", quality=90)
        asked = {"from": "human", "value": "<image>\nWhat is in this picture?"}
        rows.append({"id": str(index), "image": f"{index}.jpg"})
        rows[-1]["conversations"] = [asked, {"from": "gpt", "value": "Noise, and nothing else but noise."}]  # type: ignore[assignment]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def write_models(folder: Path) -> tuple[str, str]:
    """A tower and a language model of random weights."""
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**VISION, image_size=SIDE, patch_size=PATCH)).save_pretrained(folder / "vision")
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    CLIPImageProcessorPil(**size).save_pretrained(folder / "vision")
    return str(folder / "vision"), save_tiny_lm(folder / "base", **LANGUAGE)


def rates(folder: Path, vision: str) -> dict[str, Any]:
    """Processor seconds for one picture: decoded, decoded and prepared, and read from kept features."""
    image = ImageModality.from_source(vision)
    paths = [str(folder / f"{index}.jpg") for index in range(ROWS)]
    kept = KeptModality(image, FeatureStore(folder / "kept", 10**12))
    features = torch.randn(ROWS, image.num_positions, 1024).bfloat16()  # as ViT-L gives them
    for path, values in zip(paths, features, strict=True):
        digest = bytes(kept.load(path)["feature digest"].tolist()).hex()
        kept.store.put(digest, {"feature values": values})
    return {
        "jpeg_bytes": round(statistics.mean(os.path.getsize(path) for path in paths)),
        "decode_s": least(lambda: [open_picture(path) for path in paths]) / ROWS,
        "prepare_s": least(lambda: image.load_all(paths)) / ROWS,
        "kept_s": least(lambda: kept.load_all(paths)) / ROWS,
    }


def least(work: Callable[[], Any], rounds: int = 5) -> float:
    """Processor seconds of the fastest of several rounds."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def run(folder: Path, name: str, base: str, vision: str, data: Path) -> dict[str, Any]:
    """A run's own figures: the first step, which waits for the workers to start, is left out."""
    print(name, file=sys.stderr, flush=True)
    values = {
        "method": "llava", "model.base": base, "model.vision": vision, "data.train": [{"path": str(data)}],
        "data.template": "vicuna_v1", "data.cache": str(folder / "cache"), "train.batch_size": BATCH,
        "train.epochs": EPOCHS, "run.device": "cpu", **RUNS[name],
    }  # fmt: skip
    output = folder / name.replace(" ", "-")
    result = train(resolve("finetune", overrides=values), output=output)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    epoch = len(rows) // EPOCHS
    seconds = sum(row["seconds"] for row in rows[1:])
    features = result.get("features")
    return {
        "losses": [row["loss"] for row in rows],
        "step_s": [statistics.median(row["seconds"] for row in rows[start : start + epoch]) for start in (0, epoch)],
        "data_wait": sum(row["data_wait"] * row["seconds"] for row in rows[1:]) / seconds,
        "features": features and {key: value for key, value in features.items() if key != "folders"},
    }


def render(results: dict[str, Any]) -> str:
    """The figures, with how to compute from them for another device."""
    found = results["cases"][0]
    rate, runs = found["rates"], found["runs"]
    lines = [
        {
            "run": name,
            "s/step, epoch 1": f"{one['step_s'][0]:.2f}",
            "s/step, epoch 2": f"{one['step_s'][1]:.2f}",
            "waiting for data": f"{one['data_wait']:.1%}",
            "same losses": str(one["losses"] == next(iter(runs.values()))["losses"]).lower(),
        }
        for name, one in runs.items()
    ]
    return "\n".join(
        [
            "# Feeding pictures",
            "",
            machine(results),
            "",
            f"JPEGs of 640 x 480, {rate['jpeg_bytes'] / 1000:.0f} kB, padded to a square and prepared for",
            f"{SIDE} pixels; processor seconds of one worker, the fastest of five rounds.",
            "",
            *table(
                [
                    {
                        "": what,
                        "ms a picture": f"{1000 * rate[key]:.1f}",
                        "pictures/s of a worker": f"{1 / rate[key]:.0f}",
                    }
                    for key, what in (
                        ("decode_s", "decoded"),
                        ("prepare_s", "decoded and prepared"),
                        ("kept_s", "features of ViT-L in bf16 from the page cache"),
                    )
                ]
            ),
            "",
            f"A device that learns from R pictures a second needs R x {rate['prepare_s']:.3f} workers of such cores.",
            "",
            f"Runs of {EPOCHS} epochs of {ROWS} rows, batches of {BATCH}, LLaVA with a ViT of width",
            f"{VISION['hidden_size']} and a language model of width {LANGUAGE['hidden_size']}. Without a worker",
            "prepared pictures stay in memory for the second epoch. Wall clock on a machine that others use as well.",
            "",
            *table(lines),
            "",
        ]
    )


if __name__ == "__main__":
    main()
