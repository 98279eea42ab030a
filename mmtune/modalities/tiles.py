"""LLaVA-1.6's any-resolution pictures: cut into tiles, laid out again as rows of positions.

Source: LLaVA-NeXT release notes (2024-01) and the published code; sizes are (width, height).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

BREAK = -1  # stands in a layout where a row of tiles ends
PADDING = -2  # stands in a layout behind its end

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def best_resolution(size: tuple[int, int], candidates: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The candidate that keeps most of the picture, and among equals wastes least."""
    width, height = size

    def rank(candidate: tuple[int, int]) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, -(candidate[0] * candidate[1] - effective)

    return max(candidates, key=rank)


def cut_tiles(
    image: Image.Image, candidates: Sequence[tuple[int, int]], tile: int
) -> tuple[list[Image.Image], tuple[int, int]]:
    """The whole picture as one square tile, then the tiles of its best resolution in row-major order.

    Returns:
        The tiles and the grid as (rows, columns).
    """
    target = best_resolution(image.size, candidates)
    scale = min(target[0] / image.width, target[1] / image.height)
    if target[0] / image.width < target[1] / image.height:
        size = (target[0], min(math.ceil(image.height * scale), target[1]))
    else:
        size = (min(math.ceil(image.width * scale), target[0]), target[1])
    canvas = Image.new("RGB", target, (0, 0, 0))
    canvas.paste(image.resize(size), ((target[0] - size[0]) // 2, (target[1] - size[1]) // 2))
    tiles = [image.resize((tile, tile))]
    for top in range(0, target[1], tile):
        tiles += [canvas.crop((left, top, left + tile, top + tile)) for left in range(0, target[0], tile)]
    return tiles, (target[1] // tile, target[0] // tile)


def lay_out(size: tuple[int, int], grid: tuple[int, int], side: int, merge: str, *, class_token: bool) -> Tensor:
    """The order in which tile positions become tokens.

    Args:
        size: The picture's own size.
        grid: Rows and columns of tiles.
        side: Positions along one side of a tile.
        merge: ``flat``, ``spatial`` or ``spatial_unpad``.
        class_token: Position 0 of each tile is a class token; only ``flat`` keeps those of the small tiles.

    Returns:
        ``[L]`` int64: indices into the flattened positions of all tiles, ``BREAK`` at ends of rows.
    """
    positions = side * side + int(class_token)
    rows, columns = grid
    if merge == "flat":
        return torch.arange((rows * columns + 1) * positions)
    whole = torch.arange(positions)
    if rows * columns == 0:
        return whole
    spatial = (
        torch.arange(rows * columns * positions).view(rows, columns, positions)[..., int(class_token) :] + positions
    )
    spatial = spatial.view(rows, columns, side, side).transpose(1, 2).reshape(rows * side, columns * side)
    if merge == "spatial":
        return torch.cat([whole, spatial.flatten()])
    spatial = _unpad(spatial, size)
    breaks = torch.full((spatial.shape[0], 1), BREAK)
    return torch.cat([whole, torch.cat([spatial, breaks], dim=1).flatten()])


def _unpad(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Drop the rows or columns that are padding; rounded before truncation, as transformers does."""
    height, width = grid.shape
    if size[0] / size[1] > width / height:
        padding = (height - int(round(size[1] * (width / size[0]), 7))) // 2
        return grid[padding : height - padding]
    padding = (width - int(round(size[0] * (height / size[1]), 7))) // 2
    return grid[:, padding : width - padding]
