"""Train the nano vision tower: a small ``CLIPVisionModel`` that says what is in each cell of a drawn picture.

There are no captions and no contrast: linear heads on the hidden states name shape, colour and size of each patch's
cell, and the class token of every layer names those of all nine cells. The heads have no norm, and a small penalty
keeps the hidden states near unit variance, so that what an adapter reads at ``hidden_states[-2]`` is linearly there
and of ordinary scale.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from mmtune.nano.build.gate_vision import gate, measure
from mmtune.nano.build.vision_data import CLASSES, IGNORED, IMAGE_SIZE, Batch, training_batch
from mmtune.nano.build.vision_heads import (
    CLASS_LAYERS,
    HEADS_NAME,
    PATCH_LAYERS,
    Heads,
    load_tower,
    patch_cells,
)

logger = logging.getLogger(__name__)

PLACE_WEIGHT = 0.25
SCALE_WEIGHT = 0.02


@dataclass(frozen=True, slots=True)
class VisionPlan:
    """How long and how hard to train."""

    steps: int = 4700
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.02
    seed: int = 0


def tower_config() -> CLIPVisionConfig:
    """Return the tower's shape: 36 patches and a class token, four layers of width 128."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=16,
        projection_dim=128,
    )


def image_processor() -> CLIPImageProcessor:
    """Return the processor that goes with the tower."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=side)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED)


def _patch_loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Average over patches; row and column are asked for where the cell holds something."""
    cells = patch_cells()
    loss = torch.stack([_cross_entropy(logits[name], targets[name][:, cells]) for name in CLASSES]).sum()
    filled = targets["shape"][:, cells] > 0  # [N, 36]
    for name, place in (("row", cells // 3), ("column", cells % 3)):
        loss = loss + PLACE_WEIGHT * _cross_entropy(logits[name], torch.where(filled, place, IGNORED))
    return loss


def training_loss(tower: CLIPVisionModel, heads: Heads, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted sum of all readers' losses, and the parts worth logging."""
    states = tower(pixel_values=batch.pixels, output_hidden_states=True).hidden_states  # 5 x [N, 37, 128]
    loss = torch.zeros(())
    parts: dict[str, float] = {}
    for layer, weight in PATCH_LAYERS.items():
        part = _patch_loss(heads.patch[str(layer)](states[layer][:, 1:]), batch.targets)
        power = states[layer].float().square().mean(-1)  # [N, 37]
        loss = loss + weight * part + SCALE_WEIGHT * (power - 1).square().mean()
        parts[f"patch{layer}"] = part.item()
    for layer, weight in CLASS_LAYERS.items():
        logits = heads.token[str(layer)](states[layer][:, 0])
        part = torch.stack([_cross_entropy(logits[name], batch.targets[name]) for name in CLASSES]).sum()
        loss = loss + weight * part
        parts[f"class{layer}"] = part.item()
    return loss, parts


def _glance(tower: CLIPVisionModel, heads: Heads, name: str) -> dict[str, float]:
    """Return the readers' shares on a few hundred things, without moving the training's random state."""
    figures = measure(tower.eval(), heads, name, things=400, seed=7)
    tower.train()
    return {key: figures[key] for key in ("patch-2", "each-2", "held_out_things", "class3", "class4") if key in figures}


def train_tower(plan: VisionPlan, log: Path) -> tuple[CLIPVisionModel, Heads]:
    """Train tower and heads on fresh pictures; write a line of ``log`` every hundred steps."""
    torch.manual_seed(plan.seed)
    rng = random.Random(plan.seed)
    config = tower_config()
    config._attn_implementation = "eager"  # 37 positions: twice as fast as the fused kernel in bfloat16 on a CPU
    tower, heads = CLIPVisionModel(config).train(), Heads(config.hidden_size)
    weights = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(
        weights, plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay, fused=True
    )
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as lines:
        for step in range(plan.steps):
            warm = min(1.0, (step + 1) / plan.warmup)
            rate = plan.learning_rate * warm * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * step / plan.steps)))
            batch = training_batch(rng, plan.batch_size)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, parts = training_loss(tower, heads, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            if step % 100 == 99:
                row = {"step": step + 1, "seconds": round(time.monotonic() - start, 1), "loss": round(loss.item(), 4)}
                row |= {name: round(value, 4) for name, value in parts.items()}
                if step % 500 == 499:
                    row |= {name: _glance(tower, heads, name) for name in ("seen", "held_out")}
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                logger.info("%s", row)
    return tower.eval(), heads.eval()


def save_tower(tower: CLIPVisionModel, heads: Heads, folder: Path, heads_file: Path) -> None:
    """Write tower (float16), processor settings and, apart from them, the heads that the gate reads with."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(tower).to(torch.float16).save_pretrained(folder)
    image_processor().save_pretrained(folder)
    save_file({name: value.to(torch.float16).contiguous() for name, value in heads.state_dict().items()}, heads_file)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, save and gate a tower: ``python -m mmtune.nano.build vision --output DIR --seed 0``."""
    parser = argparse.ArgumentParser(prog="mmtune.nano.build vision", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=VisionPlan.steps)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    tower, heads = train_tower(VisionPlan(steps=options.steps, seed=options.seed), options.output / "log_vision.jsonl")
    heads_file = options.output / HEADS_NAME
    save_tower(tower, heads, options.output / "vision", heads_file)
    figures = gate(*load_tower(options.output / "vision", heads_file), things=2000, seed=options.seed + 1)
    (options.output / "gate_vision.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    logger.info("%s", json.dumps(figures, indent=1))
    return 0 if figures["passed"] else 1
