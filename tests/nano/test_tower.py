"""The shipped tower reads drawn pictures, and the build that made it is deterministic."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionModel

from mmtune.nano.build.gate_vision import HELD_OUT_FLOOR, READ_LAYER, SEEN_FLOOR, feature_scale, measure
from mmtune.nano.build.vision import VisionPlan, save_tower, train_tower
from mmtune.nano.build.vision_data import (
    IGNORED,
    cell_targets,
    odd_color,
    sample_crowd,
    to_pixels,
    training_batch,
)
from mmtune.nano.build.vision_heads import ASSETS, HEADS_NAME, Heads, load_tower, patch_cells
from mmtune.nano.world.draw import COLOR_RGB, draw_example, draw_scene
from mmtune.nano.world.scene import COLORS, HELD_OUT, SHAPES, Scene, Thing, sample_scene

VISION = ASSETS / "vision"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Batches this small are slower on several threads, much slower beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shipped() -> tuple[CLIPVisionModel, Heads]:
    return load_tower(VISION, ASSETS / HEADS_NAME)


@pytest.fixture(scope="module")
def processor() -> CLIPImageProcessor:
    return CLIPImageProcessor.from_pretrained(VISION)


def test_training_scenes_never_show_a_held_out_pair() -> None:
    rng = random.Random(0)
    things = [thing for _ in range(2000) for thing in sample_crowd(rng, odd=0.3).things]
    assert not {thing.pair for thing in things} & HELD_OUT
    assert len({thing.pair for thing in things if thing.color in COLORS}) == len(COLORS) * len(SHAPES) - len(HELD_OUT)


def test_odd_colors_are_far_from_every_known_one() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = odd_color(rng)
        levels = [int(text[start : start + 2], 16) for start in (1, 3, 5)]
        assert all(sum((x - y) ** 2 for x, y in zip(levels, c, strict=True)) > 60**2 for c in COLOR_RGB.values())


def test_targets_name_each_cell() -> None:
    things = (Thing("star", "black", "big", 0, 2), Thing("circle", "#123456", "small", 2, 0))
    targets = cell_targets([Scene(things), Scene(())])
    assert targets["shape"].tolist() == [[0, 0, 4, 0, 0, 0, 1, 0, 0], [0] * 9]
    assert targets["color"].tolist() == [[0, 0, 8, 0, 0, 0, IGNORED, 0, 0], [0] * 9]
    assert targets["size"].tolist() == [[0, 0, 2, 0, 0, 0, 1, 0, 0], [0] * 9]


def test_patches_belong_to_the_cell_they_cover() -> None:
    cells = patch_cells().view(6, 6)
    assert cells[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert cells[:, 0].tolist() == [0, 0, 3, 3, 6, 6]


def test_batches_repeat_with_their_seed() -> None:
    first, second = (training_batch(random.Random(1), 12) for _ in range(2))
    assert torch.equal(first.pixels, second.pixels)
    assert all(torch.equal(first.targets[name], second.targets[name]) for name in first.targets)


def test_training_repeats_logs_and_survives_saving(tmp_path: Path) -> None:
    plan = VisionPlan(steps=2, batch_size=4, warmup=1, seed=5)
    (tower, heads), (again, _) = (train_tower(plan, tmp_path / f"{name}.jsonl") for name in "ab")
    assert all(torch.equal(one, two) for one, two in zip(tower.parameters(), again.parameters(), strict=True))
    save_tower(tower, heads, tmp_path / "vision", tmp_path / HEADS_NAME)
    loaded, loaded_heads = load_tower(tmp_path / "vision", tmp_path / HEADS_NAME)
    pixels = training_batch(random.Random(2), 2).pixels
    with torch.no_grad():
        left, right = (model(pixels).last_hidden_state for model in (tower.float(), loaded))
    assert torch.allclose(left, right, atol=0.02)  # the loaded one was rounded to float16
    assert loaded_heads.state_dict().keys() == heads.state_dict().keys()


@pytest.mark.parametrize("size", [96, 384])
def test_the_processor_gives_what_training_gave(processor: CLIPImageProcessor, size: int) -> None:
    picture = draw_scene(sample_scene(random.Random(3), 3, 3), size=size, seed=9)
    given = processor(picture, return_tensors="pt")["pixel_values"]
    trained = to_pixels([picture.resize((96, 96), resample=3)])
    assert given.shape == (1, 3, 96, 96)
    # torchvision's bicubic filter, where installed, may differ from Pillow's by a level.
    assert (given - trained).abs().max() < 0.02


def test_files_are_small_and_half_precision() -> None:
    assert sum(path.stat().st_size for path in VISION.iterdir()) < 2_000_000
    config = json.loads((VISION / "config.json").read_text(encoding="utf-8"))
    assert (config["dtype"], config["hidden_size"], config["image_size"]) == ("float16", 128, 96)


@pytest.mark.parametrize(
    ("name", "floor"),
    [
        ("seen", SEEN_FLOOR),
        ("crowd", SEEN_FLOOR),
        ("seen_weathered", SEEN_FLOOR),
        ("held_out", HELD_OUT_FLOOR),
        ("held_out_weathered", HELD_OUT_FLOOR),
    ],
)
def test_shipped_tower_passes_the_gate(shipped: tuple[CLIPVisionModel, Heads], name: str, floor: float) -> None:
    figures = measure(*shipped, name, things=150, seed=11)
    assert figures[f"patch{READ_LAYER}"] >= floor
    assert figures["empty"] >= 0.99


def test_features_have_an_ordinary_scale(shipped: tuple[CLIPVisionModel, Heads]) -> None:
    scale = feature_scale(shipped[0], seed=1)
    assert abs(scale["mean"]) < 0.2
    assert 0.5 < scale["std"] < 2.0


def test_shipped_tower_reads_the_example(shipped: tuple[CLIPVisionModel, Heads], processor: CLIPImageProcessor) -> None:
    tower, heads = shipped
    pixels = processor(draw_example(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        patches = tower(pixels, output_hidden_states=True).hidden_states[READ_LAYER][:, 1:]
        logits = heads.patch[str(READ_LAYER)](patches)
    read = {name: logits[name][0, patch_cells() == 4].mean(0).argmax().item() for name in ("shape", "color", "size")}
    assert read == {"shape": 1 + SHAPES.index("dinosaur"), "color": 1 + COLORS.index("green"), "size": 2}
