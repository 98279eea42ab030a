"""Linear readers of the tower's hidden states: what training asks of it and what its gate reads with."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionModel

from mmtune.nano.build.vision_data import CLASSES, NUM_CELLS

ASSETS = Path(__file__).parents[1] / "assets"
HEADS_NAME = "vision_heads.safetensors"
PATCH_LAYERS = {-2: 1.0, -1: 0.5}
"""Index of the hidden state -> weight of its patches' loss."""

CLASS_LAYERS = {1: 0.1, 2: 0.2, 3: 0.5, 4: 0.5}
"""The same for the class token."""


def patch_cells() -> Tensor:
    """Return the cell of each of the 36 patches, in the order of the hidden states: ``[36]``."""
    rows = torch.arange(6) // 2
    return (3 * rows[:, None] + rows[None, :]).flatten()


class PatchHeads(nn.Module):
    """Linear readers of one hidden state's patches: what is in the cell, and which row and column it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        classes = {**CLASSES, "row": 3, "column": 3}
        self.readers = nn.ModuleDict({name: nn.Linear(width, number) for name, number in classes.items()})

    def forward(self, patches: Tensor) -> dict[str, Tensor]:
        """Map ``[N, 36, width]`` to one ``[N, 36, classes]`` for each attribute."""
        return {name: reader(patches) for name, reader in self.readers.items()}


class ClassHeads(nn.Module):
    """Linear readers of one layer's class token: shape, colour and size of all nine cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.readers = nn.ModuleDict({name: nn.Linear(width, NUM_CELLS * number) for name, number in CLASSES.items()})

    def forward(self, token: Tensor) -> dict[str, Tensor]:
        """Map ``[N, width]`` to one ``[N, 9, classes]`` for each attribute."""
        return {name: reader(token).unflatten(-1, (NUM_CELLS, -1)) for name, reader in self.readers.items()}


class Heads(nn.Module):
    """All readers that training and the gate use; none of them is part of the shipped tower."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.ModuleDict({str(layer): PatchHeads(width) for layer in PATCH_LAYERS})
        self.token = nn.ModuleDict({str(layer): ClassHeads(width) for layer in CLASS_LAYERS})


def load_tower(folder: Path, heads_file: Path) -> tuple[CLIPVisionModel, Heads]:
    """Load a saved tower and its heads in float32."""
    tower = CLIPVisionModel.from_pretrained(folder, dtype=torch.float32).eval()
    heads = Heads(tower.config.hidden_size).eval()
    heads.load_state_dict({name: value.float() for name, value in load_file(heads_file).items()})
    return tower, heads
