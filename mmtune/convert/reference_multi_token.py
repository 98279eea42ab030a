"""multi_token evaluated directly from the original tensors, to compare a converted model with.

Shapes: T ids, P positions or vectors of an item, D encoder width, H hidden size, L positions of the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmtune.convert import reference
from mmtune.convert.plan import IMAGE, Picture
from mmtune.modalities import MODALITIES
from mmtune.modalities.base import Modality

if TYPE_CHECKING:
    from mmtune.convert.encoders import Encoder
    from mmtune.convert.multi_token import Source
    from mmtune.convert.projectors import OriginalProjector


class MultiTokenReference:
    """Encoders, the MLPs of each projector one by one, and one plain forward of the language model.

    Without its adapter (``adapter=False``) the LoRA is left out and media are empty.
    """

    def __init__(
        self, source: Source, settings: Mapping[str, Mapping[str, Any]], dtype: torch.dtype | None, *, merge: bool
    ) -> None:
        self.source, self.settings, self.dtype, self.merge = source, settings, dtype, merge
        stores = [source.language.tensors, *(projector.tensors for projector in source.projectors)]
        for encoder in source.encoders:
            tower = encoder.tower.tensors if encoder.tower is not None else None
            stores += [store for store in (tower, encoder.tensors) if store is not None]
        if source.lora is not None:  # the base is evaluated beside it
            stores.append(source.language.tensors)
        self.num_parameters = reference.num_parameters(*stores)

    def load(self) -> None:
        """Bring the source's weights into memory, in float32."""
        source, dtype = self.source, self.dtype
        hub = source.base is not None and source.base.hub_id is not None and not self.merge
        base_dtype = None if hub else dtype
        self.language = reference.load_language(source.language, base_dtype, source.lora, merge=self.merge)
        self.base = self.language
        if source.lora is not None:
            self.base = reference.load_language(source.language, base_dtype)
        self.encoders = [_load(encoder, self.settings[encoder.key], dtype) for encoder in source.encoders]
        self.projectors = [
            {name: tensor.rounded(dtype) for name, tensor in projector.tensors.items()}
            for projector in source.projectors
        ]

    def release(self) -> None:
        """Let go of them again."""
        del self.language, self.base, self.encoders, self.projectors

    @torch.no_grad()
    def logits(self, ids: Tensor, picture: Picture | None, *, adapter: bool = True) -> tuple[Tensor, Tensor]:
        """Evaluate one sequence; ``IMAGE - n`` stands for the item of modality n. See :class:`Reference`."""
        language: nn.Module = self.language if adapter else self.base
        embed = language.get_input_embeddings()  # type: ignore[operator]
        rows = []
        for token in ids:
            if token > IMAGE or picture is None:
                rows.append(embed(token.unsqueeze(0)))  # [1, H]
                continue
            tokens = self._tokens(IMAGE - int(token), picture)
            rows.append(tokens if adapter else torch.zeros_like(tokens))
        found: Tensor = language(inputs_embeds=torch.cat(rows).unsqueeze(0)).logits[0]  # [L, V]
        return found, torch.ones(len(found), dtype=torch.bool)

    def _tokens(self, index: int, picture: Picture) -> Tensor:
        encoder, projector = self.source.encoders[index], self.source.projectors[index]
        module, modality = self.encoders[index]
        if modality is None:
            pixels = picture.pixels if picture.media is None else picture.media[encoder.key]["pixel_values"]
            seen = _see(module, pixels, self.settings[encoder.key])
        else:
            seen = modality.encode(module, (picture.media or {})[encoder.key])[0]
        return _project(projector, self.projectors[index], seen[0])


def _load(
    encoder: Encoder, settings: Mapping[str, Any], dtype: torch.dtype | None
) -> tuple[nn.Module, Modality | None]:
    """An encoder in float32; with the modality that reads it where it is no CLIP tower."""
    if encoder.tower is not None:
        return reference.load_tower(encoder.tower, dtype), None
    kind: type[Modality] = MODALITIES.load(encoder.key)
    modality = kind.from_source(str(encoder.place.folder) if encoder.place else encoder.named, settings=settings)
    module = modality.load_encoder(torch.float32)
    if dtype is not None and encoder.part(dtype) is not None:
        module = module.to(dtype).float()
    return module, modality


def _see(tower: nn.Module, pixels: Tensor, settings: Mapping[str, Any]) -> Tensor:
    if settings["select"] == "pool":
        return tower(pixels.float()).pooler_output.unsqueeze(1)  # type: ignore[no-any-return]
    return reference.features(tower, pixels, layer=settings["layer"], select=settings["select"])


def _project(projector: OriginalProjector, weights: Mapping[str, Tensor], seen: Tensor) -> Tensor:
    """``[P, D]`` to ``[P * width, H]``."""
    prefixes = [""] if projector.kind == "patch" else [f"mlps.{index}." for index in range(projector.width)]
    made = []
    for prefix in prefixes:
        hidden = seen
        for layer in range(projector.layers):
            hidden = functional.gelu(hidden) if layer else hidden
            name = f"{prefix}{2 * layer}."
            hidden = functional.linear(hidden, weights[f"{name}weight"], weights[f"{name}bias"])
        made.append(hidden)
    return torch.stack(made, dim=1).flatten(0, 1)
