"""VLoRA evaluated directly from the original tensors, to compare a converted model with.

Shapes: d generator width, n queries, P positions, D hidden size, r rank, T ids, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmtune.convert import reference
from mmtune.convert.plan import IMAGE, Picture

if TYPE_CHECKING:
    from mmtune.convert.original import Original
    from mmtune.convert.vlora import Dimensions

_HEADS = 16
_EPS = 1e-5
_MAPS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj", "m": "mlp"}


class VLoRAReference:
    """Generator by hand, hooks on a plain llama, the picture's slot masked; without adapter no hook acts."""

    def __init__(
        self,
        original: Original,
        sizes: Dimensions,
        image: Mapping[str, Any],
        alpha: float | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.original, self.sizes, self.image, self.dtype = original, sizes, image, dtype
        self.scale = 1.0 if alpha is None else alpha / sizes.rank
        stores = (original.language.tensors, original.tower.tensors, original.projector)
        self.num_parameters = reference.num_parameters(*stores)
        self.factors: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def load(self) -> None:
        """Bring the source's weights into memory, in float32."""
        base_dtype = self.dtype if self.original.is_copied else None
        self.language = reference.load_language(self.original.language, base_dtype)
        self.tower = reference.load_tower(self.original.tower, self.dtype)
        self.weights = {name: tensor.rounded(self.dtype) for name, tensor in self.original.projector.items()}
        for slot in range(self.sizes.layers):
            layer = (slot + 1) * self.sizes.every - 1
            block = self.language.get_submodule(f"model.layers.{layer}")
            for kind in self.sizes.types:
                block.get_submodule(_MAPS[kind]).register_forward_hook(self._hook(layer, kind))

    def release(self) -> None:
        """Let go of them again."""
        self.factors = {}
        del self.language, self.tower, self.weights

    def _hook(self, layer: int, kind: str) -> Any:
        def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if (layer, kind) not in self.factors:
                return output
            a, b = self.factors[layer, kind]  # [D, r], [D, r]
            return output + (args[0] @ a) @ b.T

        return add

    @torch.no_grad()
    def logits(self, ids: Tensor, picture: Picture | None, *, adapter: bool = True) -> tuple[Tensor, Tensor]:
        """Evaluate one sequence; see :class:`mmtune.convert.plan.Reference`."""
        real = ids != IMAGE
        self.factors = self.generate(picture.pixels) if picture is not None and adapter else {}
        found: Tensor = self.language(
            input_ids=ids.masked_fill(~real, 0).unsqueeze(0),
            attention_mask=real.long().unsqueeze(0),
            position_ids=torch.arange(len(ids)).unsqueeze(0),
        ).logits[0]
        return found, real

    def generate(self, pixels: Tensor) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
        """A and B (times alpha / r) of every layer and type, from one picture."""
        sizes, weights = self.sizes, self.weights
        seen = reference.features(self.tower, pixels, layer=self.image["layer"], select=self.image["select"])[0]
        keys = (
            functional.linear(seen, weights["visual_proj.weight"], weights["visual_proj.bias"])
            + weights["pos_embed"][0]
        )
        outputs = torch.cat([self._decode(sizes.prefix(index), keys) for index in range(sizes.decoders)])
        shape = (len(sizes.types), sizes.layers, sizes.hidden, sizes.rank)
        a, b = outputs.view(shape), weights["Bs"].view(shape) * self.scale
        return {
            ((slot + 1) * sizes.every - 1, kind): (a[index, slot], b[index, slot])
            for index, kind in enumerate(sizes.types)
            for slot in range(sizes.layers)
        }

    def _decode(self, prefix: str, keys: Tensor) -> Tensor:
        weights = self.weights
        queries = weights[f"{prefix}queries"][0]  # [n, d]
        for index in range(self.sizes.depth):
            block = f"{prefix}decoders.{index}."
            normed = self._norm(f"{block}norm1", queries)
            queries = queries + self._attend(f"{block}self_attn", normed, normed)
            queries = queries + self._attend(f"{block}multihead_attn", self._norm(f"{block}norm2", queries), keys)
            hidden = functional.gelu(self._linear(f"{block}linear1", self._norm(f"{block}norm3", queries)))
            queries = queries + self._linear(f"{block}linear2", hidden)
        return self._linear(f"{prefix}weights_head", self._norm(f"{prefix}norm", queries))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], _EPS
        )

    def _attend(self, name: str, queries: Tensor, keys: Tensor) -> Tensor:
        packed, bias = self.weights[f"{name}.in_proj_weight"].chunk(3), self.weights[f"{name}.in_proj_bias"].chunk(3)
        q, k, v = (
            functional.linear(x, weight, offset).unflatten(-1, (_HEADS, -1)).transpose(0, 1)  # [heads, ., d / heads]
            for x, weight, offset in zip((queries, keys, keys), packed, bias, strict=True)
        )
        scores = (q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5
        return self._linear(f"{name}.out_proj", (scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
