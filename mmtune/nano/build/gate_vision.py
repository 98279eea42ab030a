"""The tower's gate: does it name all attributes of a thing, also where colour and shape never met in training?"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModel

from mmtune.nano.build.vision_data import CLASSES, cell_targets, sample_crowd, to_pixels, weather
from mmtune.nano.build.vision_heads import (
    ASSETS,
    CLASS_LAYERS,
    HEADS_NAME,
    PATCH_LAYERS,
    Heads,
    load_tower,
    patch_cells,
)
from mmtune.nano.world.draw import draw_scene
from mmtune.nano.world.scene import Scene, sample_scene

SEEN_FLOOR = 0.95
HELD_OUT_FLOOR = 0.90
READ_LAYER = -2
"""The hidden state that adapters read, and that the gate judges."""

Sampler = Callable[[random.Random], Scene]
Painter = Callable[[Scene, random.Random], Image.Image]


def plain(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw at the tower's own size."""
    return draw_scene(scene, seed=rng.getrandbits(32))


SETS: dict[str, tuple[Sampler, Painter]] = {
    "seen": (lambda rng: sample_scene(rng, 1, 3, held_out=False), plain),
    "held_out": (lambda rng: sample_scene(rng, 1, 3, held_out=True), plain),
    "crowd": (sample_crowd, plain),
    "seen_weathered": (lambda rng: sample_scene(rng, 1, 3, held_out=False), weather),
    "held_out_weathered": (lambda rng: sample_scene(rng, 1, 3, held_out=True), weather),
}


@torch.no_grad()
def read_pictures(tower: CLIPVisionModel, heads: Heads, pixels: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return what each reader sees: reader -> attribute -> classes, ``[N, 9]`` by cell or ``[N, 36]`` by patch.

    ``patch-2`` averages the four patches of a cell at ``hidden_states[-2]``, ``each-2`` takes every patch on its own,
    and ``class3`` is the class token after the third layer.
    """
    states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    cells = patch_cells()
    found: dict[str, dict[str, Tensor]] = {}
    for layer in PATCH_LAYERS:
        logits = heads.patch[str(layer)](states[layer][:, 1:])
        found[f"each{layer}"] = {name: logits[name].argmax(-1) for name in CLASSES}
        pooled = {
            name: torch.stack([logits[name][:, cells == cell].mean(1) for cell in range(9)], 1) for name in CLASSES
        }
        found[f"patch{layer}"] = {name: value.argmax(-1) for name, value in pooled.items()}
    for layer in CLASS_LAYERS:
        logits = heads.token[str(layer)](states[layer][:, 0])
        found[f"class{layer}"] = {name: logits[name].argmax(-1) for name in CLASSES}
    return found


def _all_right(found: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    return torch.stack([found[name] == targets[name] for name in CLASSES]).all(0)


def measure(tower: CLIPVisionModel, heads: Heads, name: str, things: int, seed: int) -> dict[str, float]:
    """Return the share of things with all three attributes right, for every reader, on the set ``name``.

    Args:
        tower: The tower, in float32.
        heads: Its readers.
        name: One of ``SETS``.
        things: How many things to look at, at least.
        seed: Decides the pictures.
    """
    sampler, painter = SETS[name]
    rng = random.Random(f"{seed} {name}")
    hits: dict[str, list[Tensor]] = {}
    total = 0
    while total < things:
        scenes = [sampler(rng) for _ in range(100)]
        targets = cell_targets(scenes)
        spread = {key: value[:, patch_cells()] for key, value in targets.items()}
        odd = torch.zeros_like(targets["shape"], dtype=torch.bool)  # cells with a held-out pair
        for index, scene in enumerate(scenes):
            for thing in scene.things:
                odd[index, 3 * thing.row + thing.column] = Scene((thing,)).has_held_out
        for reader, found in read_pictures(tower, heads, to_pixels([painter(scene, rng) for scene in scenes])).items():
            aims = spread if reader.startswith("each") else targets
            right, filled = _all_right(found, aims), aims["shape"] > 0
            hits.setdefault(reader, []).append(right[filled])
            if reader == f"patch{READ_LAYER}":
                hits.setdefault("empty", []).append(right[~filled])
                hits.setdefault("held_out_things", []).append(right[odd])
                for key in CLASSES:
                    hits.setdefault(key, []).append((found[key] == targets[key])[filled])
        total += int((targets["shape"] > 0).sum())
    shares = {key: torch.cat(values).float() for key, values in hits.items()}
    return {"things": float(total)} | {
        key: round(value.mean().item(), 4) for key, value in shares.items() if len(value)
    }


@torch.no_grad()
def feature_scale(tower: CLIPVisionModel, seed: int) -> dict[str, float]:
    """Return mean, spread and extremes of the patches that adapters read."""
    rng = random.Random(seed)
    pixels = to_pixels([plain(sample_scene(rng), rng) for _ in range(100)])
    patches = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[READ_LAYER][:, 1:]  # [100, 36, 128]
    figures = {
        "mean": patches.mean(),
        "std": patches.std(),
        "largest": patches.abs().max(),
        "smallest_channel_std": patches.flatten(0, 1).std(0).min(),
        "largest_channel_std": patches.flatten(0, 1).std(0).max(),
        "largest_channel_mean": patches.flatten(0, 1).mean(0).abs().max(),
    }
    return {name: round(value.item(), 4) for name, value in figures.items()}


def gate(tower: CLIPVisionModel, heads: Heads, *, things: int = 2000, seed: int = 1) -> dict[str, Any]:
    """Measure all sets; ``passed`` says whether the tower may ship."""
    figures: dict[str, Any] = {name: measure(tower, heads, name, things, seed) for name in SETS}
    figures["scale"] = feature_scale(tower, seed)
    reader = f"patch{READ_LAYER}"
    figures["passed"] = (
        min(figures[name][reader] for name in ("seen", "crowd", "seen_weathered")) >= SEEN_FLOOR
        and min(figures[name][reader] for name in ("held_out", "held_out_weathered")) >= HELD_OUT_FLOOR
    )
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Judge a saved tower: ``python -m mmtune.nano.build gate-vision``; the exit code is 1 where it fails."""
    parser = argparse.ArgumentParser(prog="mmtune.nano.build gate-vision", description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=ASSETS, help="folder of vision/ and the heads; the shipped one")
    parser.add_argument("--things", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    tower, heads = load_tower(options.folder / "vision", options.folder / HEADS_NAME)
    figures = gate(tower, heads, things=options.things, seed=options.seed)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["passed"] else 1
