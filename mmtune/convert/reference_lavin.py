"""LaVIN evaluated directly from the original tensors, to compare a converted model with.

The decision token stands in the sequence, behind a mask, as in the published code. Shapes: L positions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmtune.convert import reference
from mmtune.convert.language import Language
from mmtune.convert.plan import IMAGE, Picture
from mmtune.convert.tensors import Store
from mmtune.convert.vision import Tower


@dataclass(frozen=True, slots=True)
class Mixing:
    """What the tensors of an adapter do not say."""

    scale: float
    temperature: float
    tap_every: int


class LaVINReference:
    """Plain transformers models with the adapters of the source hooked onto their norms."""

    def __init__(
        self,
        language: Language,
        tower: Tower,
        adapter: Store,
        mixing: Mixing,
        dtype: torch.dtype | None,
        *,
        copied: bool,
    ) -> None:
        self.sources, self.mixing, self.dtype, self.copied = (language, tower, adapter), mixing, dtype, copied
        self.num_parameters = reference.num_parameters(language.tensors, tower.tensors, adapter)
        self.active = True

    def load(self) -> None:
        """Bring the source's weights into memory, in float32."""
        language, tower, adapter = self.sources
        self.language = reference.load_language(language, self.dtype if self.copied else None)
        self.tower = reference.load_tower(tower, self.dtype)
        self.weights = {name: tensor.rounded(self.dtype) for name, tensor in adapter.items()}
        for layer in range(language.num_layers):
            norm = self.language.get_submodule(f"model.layers.{layer}.input_layernorm")
            norm.register_forward_hook(self._hook(f"layers.{layer}", by_first=True))
        for layer in range(int(tower.config["num_hidden_layers"])):
            norm = next(
                found for name, found in self.tower.named_modules() if name.endswith(f"layers.{layer}.layer_norm1")
            )
            norm.register_forward_hook(self._hook(f"backbone.visual.transformer.resblocks.{layer}", by_first=False))

    def release(self) -> None:
        """Let go of them again."""
        del self.language, self.tower, self.weights

    def _hook(self, prefix: str, *, by_first: bool) -> Any:
        def adapt(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            return self._adapt(f"{prefix}.adapter_attn.", output, by_first) if self.active else output

        return adapt

    def _adapt(self, prefix: str, x: Tensor, by_first: bool) -> Tensor:
        """One adapter on ``[1, L, D]``, with the convolutions of the published code."""
        weights: Mapping[str, Tensor] = {
            name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)
        }
        asked = x[:, :1] if by_first else x
        scores = functional.linear(asked, weights["expert_weights.weight"], weights["expert_weights.bias"])
        share = (scores / self.mixing.temperature).softmax(-1)  # [1, 1 or L, 2]
        inner = functional.conv1d(x.transpose(1, 2), weights["conv_A.weight"], weights["conv_A.bias"])
        first, second = (
            functional.conv1d(inner, weights[f"{name}.weight"], weights[f"{name}.bias"], groups=2).transpose(1, 2)
            for name in ("conv_B", "conv_D")
        )
        return x + self.mixing.scale * (share[..., :1] * first + share[..., 1:] * second)

    @torch.no_grad()
    def logits(self, ids: Tensor, picture: Picture | None, *, adapter: bool = True) -> tuple[Tensor, Tensor]:
        """Evaluate one sequence; see :class:`mmtune.convert.plan.Reference`."""
        self.active = adapter
        embed = self.language.get_input_embeddings()  # type: ignore[operator]
        rows = [embed(ids[ids != IMAGE])]  # [T, H]
        if picture is not None:
            place = int((ids == IMAGE).nonzero()[0])
            rows = [rows[0][:place], self._tokens(picture), rows[0][place:]]
        decision = self.weights["adapter_modality_embedding.weight"][int(picture is not None)]
        sequence = torch.cat([decision.unsqueeze(0), *rows]).unsqueeze(0)  # [1, 1 + L, H]
        length = sequence.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        seen[1:, 0] = False  # nothing attends to the decision token but itself
        mask = torch.zeros(length, length).masked_fill(~seen, float("-inf"))
        found: Tensor = self.language(inputs_embeds=sequence, attention_mask=mask[None, None]).logits[0, 1:]
        return found, torch.ones(len(found), dtype=torch.bool)

    def _tokens(self, picture: Picture) -> Tensor:
        states = self.tower(picture.pixels.float(), output_hidden_states=True).hidden_states
        every = self.mixing.tap_every
        taps = torch.stack([state[0, 0] for state in states[every::every] or states[-1:]])  # [taps, D]
        weights = self.weights
        hidden = functional.linear(taps, weights["adapter_proj.conv_A.weight"], weights["adapter_proj.conv_A.bias"])
        return functional.linear(
            functional.silu(hidden), weights["adapter_proj.conv_B.weight"], weights["adapter_proj.conv_B.bias"]
        )
