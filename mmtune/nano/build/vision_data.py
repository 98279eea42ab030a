"""Endless drawn pictures for the tower, and what each cell of them holds.

Training scenes are busier than those of the question sets (up to six things, shapes and colours may repeat: more to
learn from each picture) and never show a pair of ``HELD_OUT``. Some pictures take the way real input takes: drawn
large, stored as JPEG, scaled down by the image processor's bicubic filter. Some pictures are grey and some things
have a colour beyond the eight: there the colour is not asked for, which teaches that shape and size do not depend on
it.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmtune.nano.world.draw import BACKGROUND_RGB, COLOR_RGB, draw_scene
from mmtune.nano.world.scene import BACKGROUNDS, COLORS, HELD_OUT, SHAPES, SIZES, Scene, Thing

IMAGE_SIZE = 96
NUM_CELLS = 9
IGNORED = -100
MINIMUM_DISTANCE = 60  # of an odd colour to every known one, in levels of 255
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLASSES = {"shape": len(SHAPES) + 1, "color": len(COLORS) + 1, "size": len(SIZES) + 1}
"""Classes of each attribute of a cell; 0 is an empty cell."""

_NUMBER_WEIGHTS = (2, 14, 17, 17, 17, 17, 16)  # of 0, 1, ... 6 things


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures as the processor would hand them to the tower, and what is in their cells."""

    pixels: Tensor  # [N, 3, 96, 96] float32, normalised
    targets: dict[str, Tensor]  # attribute -> [N, 9] int64, 0 for an empty cell, -100 where not asked


def odd_color(rng: random.Random) -> str:
    """Draw a colour, as ``#rrggbb``, that is none of the eight and no background either."""
    known = (*COLOR_RGB.values(), *BACKGROUND_RGB)
    while True:
        levels = [rng.randrange(256) for _ in range(3)]
        if all(sum((x - y) ** 2 for x, y in zip(levels, other, strict=True)) > MINIMUM_DISTANCE**2 for other in known):
            return "#{:02x}{:02x}{:02x}".format(*levels)


def sample_crowd(rng: random.Random, odd: float = 0.0) -> Scene:
    """Draw a scene of none to six things in distinct cells; anything may repeat, no held-out pair occurs.

    A share ``odd`` of the things has a colour beyond the eight.
    """
    number = rng.choices(range(len(_NUMBER_WEIGHTS)), _NUMBER_WEIGHTS)[0]
    things = []
    for cell in sorted(rng.sample(range(NUM_CELLS), number)):
        shape, color = rng.choice(SHAPES), rng.choice(COLORS)
        while (color, shape) in HELD_OUT:
            shape, color = rng.choice(SHAPES), rng.choice(COLORS)
        if rng.random() < odd:
            shape, color = rng.choice(SHAPES), odd_color(rng)
        things.append(Thing(shape, color, rng.choice(SIZES), *divmod(cell, 3)))
    return Scene(tuple(things), rng.randrange(BACKGROUNDS))


def weather(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw ``scene`` at another size, perhaps store it as JPEG, and scale it to the tower's size, bicubic."""
    large = rng.random() < 0.75
    picture = draw_scene(scene, size=rng.randint(64, 256) if large else IMAGE_SIZE, seed=rng.getrandbits(32))
    if not large or rng.random() < 0.5:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=rng.randint(60, 95))
        picture = Image.open(file)
    return picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)


def cell_targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Return the class of every attribute of every cell, ``[N, 9]`` each."""
    targets = {name: torch.zeros(len(scenes), NUM_CELLS, dtype=torch.int64) for name in CLASSES}
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            cell = 3 * thing.row + thing.column
            targets["shape"][index, cell] = 1 + SHAPES.index(thing.shape)
            known = thing.color in COLORS
            targets["color"][index, cell] = 1 + COLORS.index(thing.color) if known else IGNORED
            targets["size"][index, cell] = 1 + SIZES.index(thing.size)
    return targets


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Do what the shipped ``CLIPImageProcessor`` does to pictures of 96 x 96: ``[N, 3, 96, 96]`` float32."""
    stack = np.stack([np.asarray(picture, dtype=np.uint8) for picture in pictures])
    levels = torch.from_numpy(stack).permute(0, 3, 1, 2).to(torch.float32)  # [N, 3, 96, 96]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return ((levels / 255 - mean) / std).contiguous()


def training_batch(
    rng: random.Random, size: int, weathered: float = 0.2, grey: float = 0.06, odd: float = 0.3
) -> Batch:
    """Draw ``size`` fresh pictures; shares of them go through ``weather``, lose their colours or have odd ones."""
    scenes = [sample_crowd(rng, odd) for _ in range(size)]
    targets = cell_targets(scenes)
    pictures = []
    for index, scene in enumerate(scenes):
        if rng.random() < weathered:
            picture = weather(scene, rng)
        else:
            picture = draw_scene(scene, size=IMAGE_SIZE, seed=rng.getrandbits(32))
        if rng.random() < grey:
            picture = picture.convert("L").convert("RGB")
            targets["color"][index] = IGNORED
        pictures.append(picture)
    return Batch(to_pixels(pictures), targets)
