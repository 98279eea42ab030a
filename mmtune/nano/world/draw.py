"""Draw a scene: flat shapes on a pale ground, three by three cells, the same bytes for the same seed.

All geometry is in shares of the picture's side, so one seed gives one picture at every size: a thumbnail for the
tower and a large one to look at. Shapes are drawn three times larger with Pillow's integer rasteriser and averaged
down, which needs no floating point maths on pixels and so does not differ between machines.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from PIL import Image, ImageColor, ImageDraw

from mmtune.nano.world.scene import Scene, Thing

Point = tuple[float, float]
Rgb = tuple[int, int, int]

SUPERSAMPLE = 3
COLOR_RGB: dict[str, Rgb] = {
    "red": (218, 30, 36),
    "orange": (246, 132, 16),
    "yellow": (243, 208, 20),
    "green": (36, 150, 62),
    "blue": (34, 88, 214),
    "purple": (122, 46, 168),
    "pink": (248, 132, 186),
    "black": (30, 30, 34),
}
BACKGROUND_RGB: tuple[Rgb, ...] = (
    (252, 252, 252),
    (233, 234, 237),
    (251, 245, 228),
    (226, 239, 251),
    (229, 246, 233),
    (251, 235, 239),
)
COLOR_JITTER = 12  # levels of 255, each channel on its own
BACKGROUND_JITTER = 3
SIZE_JITTER = 0.06  # share of the extent
# Nominal extent of a thing, and how far its centre may stray from the cell's: shares of the picture's side.
EXTENT = {"small": 0.134, "big": 0.262}
STRAY = {"small": 0.042, "big": 0.012}
# What makes all shapes look equally large.
STRETCH = {"circle": 1.0, "square": 0.9, "triangle": 1.06, "star": 1.1, "dinosaur": 1.08}

# A long-necked dinosaur that looks to the right, as knots of a closed smooth curve; x right, y down, within +-0.5.
_BODY: tuple[Point, ...] = (
    (0.50, -0.36), (0.49, -0.42), (0.40, -0.48), (0.29, -0.47), (0.22, -0.39), (0.185, -0.26), (0.14, -0.13),
    (0.03, -0.10), (-0.10, -0.11), (-0.22, -0.04), (-0.34, 0.10), (-0.43, 0.16), (-0.50, 0.15),
    (-0.44, 0.24), (-0.32, 0.24), (-0.20, 0.19), (-0.02, 0.22), (0.15, 0.20), (0.27, 0.09), (0.305, -0.07),
    (0.33, -0.22), (0.37, -0.305), (0.44, -0.325),
)  # fmt: skip
_LEGS: tuple[tuple[float, float, float], ...] = ((-0.225, -0.085, 0.44), (0.105, 0.245, 0.44))  # left, right, bottom
_FAR_LEGS: tuple[tuple[float, float, float], ...] = ((-0.095, -0.025, 0.4), (0.045, 0.11, 0.4))
_EYE: Point = (0.37, -0.405)
_EYE_RADIUS = 0.042
_PUPIL_RADIUS = 0.022
_FAR_SHADE = 0.75


def _smooth(knots: Sequence[Point], steps: int = 4) -> tuple[Point, ...]:
    """Return a closed Catmull-Rom curve through ``knots`` as a polygon with ``steps`` points a knot."""
    curve = []
    for index in range(len(knots)):
        before, start, end, after = (knots[(index + offset) % len(knots)] for offset in (-1, 0, 1, 2))
        for step in range(steps):
            t = step / steps
            weights = (
                (-t + 2 * t**2 - t**3) / 2,
                (2 - 5 * t**2 + 3 * t**3) / 2,
                (t + 4 * t**2 - 3 * t**3) / 2,
                (-(t**2) + t**3) / 2,
            )
            corners = (before, start, end, after)
            x, y = (sum(w * corner[axis] for w, corner in zip(weights, corners, strict=True)) for axis in (0, 1))
            curve.append((x, y))
    return tuple(curve)


def _star_points(inner: float = 0.45) -> tuple[Point, ...]:
    """Return a five-pointed star with one point up; ``inner`` is the inner radius as a share of the outer one."""
    radii = (0.5, 0.5 * inner)
    angles = [(radii[k % 2], math.pi * k / 5 - math.pi / 2) for k in range(10)]
    return tuple((r * math.cos(angle), r * math.sin(angle) + 0.03) for r, angle in angles)


_OUTLINES: dict[str, tuple[Point, ...]] = {
    "square": ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)),
    "triangle": ((0.0, -0.47), (0.5, 0.42), (-0.5, 0.42)),
    "star": _star_points(),
    "dinosaur": _smooth(_BODY),
}


def _leg(left: float, right: float, bottom: float) -> tuple[Point, ...]:
    return ((left, 0.05), (right, 0.05), (right - 0.005, bottom), (left - 0.005, bottom))


class _Pen:
    """Draws unit-square outlines at one place of the canvas; the only place that rounds to whole canvas pixels."""

    def __init__(self, draw: ImageDraw.ImageDraw, center: Point, extent: float, mirrored: bool) -> None:
        self._draw, self._center, self._extent = draw, center, extent
        self._sign = -1 if mirrored else 1

    def _place(self, point: Point) -> tuple[int, int]:
        x = self._center[0] + self._sign * point[0] * self._extent
        return round(x), round(self._center[1] + point[1] * self._extent)

    def polygon(self, outline: Sequence[Point], fill: Rgb) -> None:
        self._draw.polygon([self._place(point) for point in outline], fill=fill)

    def disc(self, center: Point, radius: float, fill: Rgb) -> None:
        (x, y), r = self._place(center), round(radius * self._extent)
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _shade(color: Rgb, jitter: int, rng: random.Random) -> Rgb:
    red, green, blue = (min(255, max(0, level + rng.randint(-jitter, jitter))) for level in color)
    return red, green, blue


def _draw_dinosaur(pen: _Pen, color: Rgb) -> None:
    red, green, blue = color
    far = (int(red * _FAR_SHADE), int(green * _FAR_SHADE), int(blue * _FAR_SHADE))
    for leg in _FAR_LEGS:
        pen.polygon(_leg(*leg), far)
    pen.polygon(_OUTLINES["dinosaur"], color)
    for leg in _LEGS:
        pen.polygon(_leg(*leg), color)
    pen.disc(_EYE, _EYE_RADIUS, (255, 255, 255))
    pen.disc(_EYE, _PUPIL_RADIUS, (10, 10, 10))


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, side: int, rng: random.Random) -> None:
    base = COLOR_RGB[thing.color] if thing.color in COLOR_RGB else ImageColor.getrgb(thing.color)
    color = _shade(base, COLOR_JITTER, rng)
    stray = STRAY[thing.size]
    x = (thing.column + 0.5) / 3 + rng.uniform(-stray, stray)
    y = (thing.row + 0.5) / 3 + rng.uniform(-stray, stray)
    extent = EXTENT[thing.size] * STRETCH[thing.shape] * (1 + rng.uniform(-SIZE_JITTER, SIZE_JITTER))
    pen = _Pen(draw, (x * side, y * side), extent * side, mirrored=rng.random() < 0.5)
    if thing.shape == "dinosaur":
        _draw_dinosaur(pen, color)
    elif thing.shape == "circle":
        pen.disc((0.0, 0.0), 0.5, color)
    else:
        pen.polygon(_OUTLINES[thing.shape], color)


def draw_scene(scene: Scene, *, size: int = 96, seed: int) -> Image.Image:
    """Draw ``scene`` as an RGB picture.

    Args:
        scene: The things to draw and the number of the background. A colour beyond the eight may be given as
            ``#rrggbb``.
        size: Side of the square picture.
        seed: Decides the jitter in place, size and colour, and which way a dinosaur looks. The same seed gives the
            same picture, at any ``size``, in any process.

    Returns:
        A ``size`` x ``size`` picture in mode RGB.
    """
    rng = random.Random(seed)
    side = size * SUPERSAMPLE
    ground = _shade(BACKGROUND_RGB[scene.background % len(BACKGROUND_RGB)], BACKGROUND_JITTER, rng)
    canvas = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        _draw_thing(draw, thing, side, rng)
    return canvas.reduce(SUPERSAMPLE)


def draw_example(size: int = 384) -> Image.Image:
    """Draw ``examples/dino.png``: a big green dinosaur that looks at a small yellow star."""
    star = Thing(shape="star", color="yellow", size="small", row=0, column=2)
    dinosaur = Thing(shape="dinosaur", color="green", size="big", row=1, column=1)
    return draw_scene(Scene((star, dinosaur), background=3), size=size, seed=1)
