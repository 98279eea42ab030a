"""LLaVA evaluated directly from the original tensors, to compare a converted model with.

Shapes: T ids, P positions a picture, D encoder width, H hidden size, L positions of the sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmtune.convert import reference
from mmtune.convert.lora import Lora
from mmtune.convert.plan import IMAGE, Picture

if TYPE_CHECKING:
    from mmtune.convert.original import Original


class LLaVAReference:
    """Tower, projector and language model by hand: features, linear maps with GELU between, one plain forward.

    Without its adapter (``adapter=False``) a LoRA is left out; for the others the picture is.
    """

    def __init__(
        self, original: Original, image: Mapping[str, Any], lora: Lora | None, dtype: torch.dtype | None, *, merge: bool
    ) -> None:
        self.original, self.image, self.lora, self.dtype, self.merge = original, image, lora, dtype, merge
        stores = [original.language.tensors, original.tower.tensors, original.projector]
        if lora is not None:  # the base is evaluated beside it
            stores.append(original.language.tensors)
        self.num_parameters = reference.num_parameters(*stores)

    def load(self) -> None:
        """Bring the source's weights into memory, in float32."""
        language, dtype = self.original.language, self.dtype
        base_dtype = dtype if self.original.is_copied or self.merge else None
        self.language = reference.load_language(language, base_dtype, self.lora, merge=self.merge)
        self.base = reference.load_language(language, base_dtype) if self.lora is not None else None
        self.tower = reference.load_tower(self.original.tower, dtype)
        self.projector = {name: tensor.rounded(dtype) for name, tensor in self.original.projector.items()}

    def release(self) -> None:
        """Let go of them again."""
        del self.language, self.base, self.tower, self.projector

    @torch.no_grad()
    def logits(self, ids: Tensor, picture: Picture | None, *, adapter: bool = True) -> tuple[Tensor, Tensor]:
        """Evaluate one sequence; see :class:`mmtune.convert.plan.Reference`."""
        language: nn.Module = self.language
        if not adapter and self.base is not None:
            language = self.base
        embed = language.get_input_embeddings()  # type: ignore[operator]
        rows = [embed(ids[ids != IMAGE])]  # [T, H]
        if picture is not None:
            place = int((ids == IMAGE).nonzero()[0])
            tokens = self._tokens(picture)  # [P, H]
            if not adapter and self.base is None:
                tokens = torch.zeros_like(tokens)
            rows = [rows[0][:place], tokens, rows[0][place:]]
        found: Tensor = language(inputs_embeds=torch.cat(rows).unsqueeze(0)).logits[0]  # [L, V]
        return found, torch.ones(len(found), dtype=torch.bool)

    def _tokens(self, picture: Picture) -> Tensor:
        seen = reference.features(
            self.tower, picture.pixels, layer=self.image["layer"], select=self.image["select"]
        )  # [N, P, D]
        tokens = self._project(seen)  # [N, P, H]
        if self.image["aspect"] != "anyres":
            return tokens.flatten(0, 1)
        merge = self.image["merge"]
        return tokens.flatten(0, 1) if merge == "flat" else self._merge(tokens, picture.size)

    def _project(self, seen: Tensor) -> Tensor:
        if not self.projector:
            return seen
        if "weight" in self.projector:
            return functional.linear(seen, self.projector["weight"], self.projector["bias"])
        numbers = sorted({int(name.split(".")[0]) for name in self.projector})
        for number in numbers:
            seen = functional.gelu(seen) if number else seen
            seen = functional.linear(seen, self.projector[f"{number}.weight"], self.projector[f"{number}.bias"])
        return seen

    def _merge(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """LLaVA-1.6: the whole picture first, then its tiles as one plane, row by row."""
        side = math.isqrt(tokens.shape[1])
        base, tiles = tokens[0], tokens[1:]
        newline = self.original.newline.rounded(self.dtype) if self.image["merge"] == "spatial_unpad" else None  # type: ignore[union-attr]
        if not len(tiles):
            return base if newline is None else torch.cat([base, newline.unsqueeze(0)])
        edge = int(self.original.tower.config["image_size"])
        width, height = _best_canvas(size, self.image["pinpoints"])
        grid = tiles.view(height // edge, width // edge, side, side, -1).transpose(1, 2)
        plane = grid.reshape(height // edge * side, width // edge * side, -1)  # [rows, columns, H]
        if newline is None:
            return torch.cat([base, plane.flatten(0, 1)])
        plane = _unpad(plane, size)
        plane = torch.cat([plane, newline.expand(len(plane), 1, -1)], dim=1)
        return torch.cat([base, plane.flatten(0, 1)])


def _best_canvas(size: tuple[int, int], pinpoints: list[list[int]]) -> tuple[int, int]:
    """The canvas that keeps most of the picture, and of those the one that wastes least."""

    def fit(canvas: list[int]) -> tuple[int, int]:
        scale = min(canvas[0] / size[0], canvas[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - canvas[0] * canvas[1]

    best = max(pinpoints, key=fit)
    return best[0], best[1]


def _unpad(plane: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns, _ = plane.shape
    if size[0] / size[1] > columns / rows:
        border = (rows - int(size[1] * (columns / size[0]))) // 2
        return plane[border : rows - border]
    border = (columns - int(size[0] * (rows / size[1]))) // 2
    return plane[:, border : columns - border]
