"""OpenAI's CLIP vision transformer evaluated straight from its own tensors.

Shapes: N pictures, P positions with the class token first, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmtune.convert.plan import Picture
from mmtune.convert.reference import num_parameters
from mmtune.convert.tensors import Store

_EPS = 1e-5


class OpenAIClipReference:
    """The published forward pass in float32 up to the last block, before the final norm and projection."""

    def __init__(self, store: Store, config: Mapping[str, Any], dtype: torch.dtype | None) -> None:
        visual = {name: tensor for name, tensor in store.items() if name.startswith("visual.")}
        self.tensors, self.config, self.dtype = visual, config, dtype
        self.num_parameters = num_parameters(visual)

    def load(self) -> None:
        """Bring the source's weights into memory, in float32."""
        self.weights = {
            name.removeprefix("visual."): tensor.rounded(self.dtype) for name, tensor in self.tensors.items()
        }

    def release(self) -> None:
        """Let go of them again."""
        del self.weights

    @torch.no_grad()
    def logits(self, ids: Tensor, picture: Picture | None, *, adapter: bool = True) -> tuple[Tensor, Tensor]:
        """The last hidden state ``[P, D]`` of a picture; a tower has no logits and takes no ids."""
        if picture is None:
            raise ValueError("A vision tower is evaluated on a picture.")
        weights, patch = self.weights, int(self.config["patch_size"])
        seen = functional.conv2d(picture.pixels.float(), weights["conv1.weight"], stride=patch)  # [1, D, s, s]
        seen = torch.cat([weights["class_embedding"].unsqueeze(0), seen[0].flatten(1).T])  # [P, D]
        seen = self._norm(seen + weights["positional_embedding"], "ln_pre")
        for layer in range(int(self.config["num_hidden_layers"])):
            seen = self._block(seen, f"transformer.resblocks.{layer}.")
        return seen, torch.ones(len(seen), dtype=torch.bool)

    def _block(self, seen: Tensor, prefix: str) -> Tensor:
        weights = {
            name.removeprefix(prefix): tensor for name, tensor in self.weights.items() if name.startswith(prefix)
        }
        width, heads = seen.shape[-1], int(self.config["num_attention_heads"])
        normed = self._norm(seen, f"{prefix}ln_1").unsqueeze(1)  # [P, 1, D]
        attended, _ = functional.multi_head_attention_forward(
            normed, normed, normed, width, heads, weights["attn.in_proj_weight"], weights["attn.in_proj_bias"],
            None, None, False, 0.0, weights["attn.out_proj.weight"], weights["attn.out_proj.bias"],
            training=False, need_weights=False,
        )  # fmt: skip
        seen = seen + attended.squeeze(1)
        inner = functional.linear(
            self._norm(seen, f"{prefix}ln_2"), weights["mlp.c_fc.weight"], weights["mlp.c_fc.bias"]
        )
        inner = inner * torch.sigmoid(1.702 * inner)
        return seen + functional.linear(inner, weights["mlp.c_proj.weight"], weights["mlp.c_proj.bias"])

    def _norm(self, seen: Tensor, name: str) -> Tensor:
        return functional.layer_norm(
            seen, seen.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], _EPS
        )
