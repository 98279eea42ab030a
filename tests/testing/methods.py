"""A small third-party method, and one with a fault for each property that the checks look after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmtune.core import config
from mmtune.core.conditioning import Slot
from mmtune.core.perception import Features, LowRank, Perception
from mmtune.hosts.host import Host, attach_deltas
from mmtune.methods.base import Method
from mmtune.modalities.base import Modality


class GistSettings(config.Settings):
    rank: int = 2


class Gist(Method):
    """The mean feature of a row's items becomes weights of every MLP."""

    name: ClassVar[str] = "gist"
    Settings = GistSettings
    masked_slots = True
    neutral_at_init = True

    def __init__(self, settings: GistSettings, lm: Host, modalities: Mapping[str, Modality]) -> None:
        super().__init__(settings, lm, modalities)
        self.rank = settings.rank
        self.sites = [lm.site(layer, "m") for layer in range(lm.num_layers)]
        self.read = nn.Linear(next(iter(modalities.values())).width, len(self.sites) * lm.hidden_size * settings.rank)
        self.delta_b = nn.Parameter(torch.zeros(len(self.sites), settings.rank, lm.hidden_size))

    def attach(self, lm: Host, encoders: Mapping[str, nn.Module], slot: Slot) -> None:
        attach_deltas(lm, self.sites, slot)

    def placeholders(self, modality: str, positions: int) -> int:
        return 1

    def summary(self, seen: Features, batch_size: int) -> Tensor:
        values = seen.values.to(self.read.weight.dtype).mean(1)  # [N, D]
        rows = torch.zeros(batch_size, len(values)).to(values)
        rows[seen.owner, torch.arange(len(values))] = 1.0
        return rows @ self.read(values)  # [B, ...], zero for rows without items

    def perceive(self, features: Mapping[str, Features], batch_size: int) -> Perception:
        if not features:
            return Perception()
        a = self.summary(next(iter(features.values())), batch_size).view(batch_size, len(self.sites), -1, self.rank)
        deltas = {site.name: LowRank(a[:, i], self.delta_b[i][None]) for i, site in enumerate(self.sites)}
        return Perception(deltas=deltas)

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        return {"generator": list(self.read.parameters()), "delta_b": [self.delta_b]}


class NotNeutral(Gist):
    name = "not_neutral"

    def __init__(self, settings: GistSettings, lm: Host, modalities: Mapping[str, Modality]) -> None:
        super().__init__(settings, lm, modalities)
        nn.init.normal_(self.delta_b)


class Blind(Gist):
    name = "blind"

    def perceive(self, features: Mapping[str, Features], batch_size: int) -> Perception:
        return Perception()


class Leaky(Gist):
    """Rows without items get the bias of the reader, but only beside rows with items."""

    name = "leaky"

    def summary(self, seen: Features, batch_size: int) -> Tensor:
        return super().summary(seen, batch_size) + self.read.bias


class Stalling(Gist):
    """A batch without media leaves parameters without a gradient."""

    name = "stalling"

    def anchor(self) -> Tensor:
        return torch.zeros(())


class OneEach(Gist):
    """Takes the last item of a row for all of them, and misses the first."""

    name = "mixing"

    def summary(self, seen: Features, batch_size: int) -> Tensor:
        rows = super().summary(seen, batch_size)
        shared = (rows.abs().sum(-1, keepdim=True) > 0).to(rows) * rows.mean(0)
        return rows + shared


class Ordered(Gist):
    """Rows differ by where they stand."""

    name = "ordered"

    def summary(self, seen: Features, batch_size: int) -> Tensor:
        rows = super().summary(seen, batch_size)
        return rows * (1 + 0.1 * (torch.arange(batch_size).to(rows)[:, None] > 2))


class Hooked(Gist):
    """A method with a hook of its own on every MLP."""

    name = "hooked"
    neutral_at_init = False

    def attach(self, lm: Host, encoders: Mapping[str, nn.Module], slot: Slot) -> None:
        super().attach(lm, encoders, slot)
        self.calls = 0

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not (slot.perception and slot.perception.deltas):
                return None
            own = next(iter(slot.perception.deltas.values())).a.abs().sum((1, 2)) > 0  # rows that have items
            shown = own.repeat_interleave(len(output) // len(own))[:, None, None]
            return output + shown * self.change(args[0], slot)

        for block in lm.blocks():
            block.mlp.register_forward_hook(add)

    def change(self, x: Tensor, slot: Slot) -> Tensor:
        raise NotImplementedError


class Padded(Hooked):
    """Looks at padding: the mean over all positions."""

    name = "padded"

    def change(self, x: Tensor, slot: Slot) -> Tensor:
        return 0.1 * x.mean(1, keepdim=True) if x.shape[1] > 1 else torch.zeros_like(x)


class Counting(Hooked):
    """Counts its calls in training, and recomputation calls it again."""

    name = "counting"

    def change(self, x: Tensor, slot: Slot) -> Tensor:
        self.calls = self.calls + 1 if torch.is_grad_enabled() else 0
        return 0.01 * self.calls * x


class Forgetful(Hooked):
    """Holds a random number that no checkpoint keeps."""

    name = "forgetful"

    def attach(self, lm: Host, encoders: Mapping[str, nn.Module], slot: Slot) -> None:
        super().attach(lm, encoders, slot)
        self.secret = float(self.read.weight.detach()[0, 0])

    def change(self, x: Tensor, slot: Slot) -> Tensor:
        return self.secret * x


class Uncached(Hooked):
    """Acts on whole sequences only, so that cached steps miss it."""

    name = "uncached"

    def change(self, x: Tensor, slot: Slot) -> Tensor:
        return x.roll(1, -1) * float(x.shape[1] > 1)


class Tiling(Hooked):
    """Hands factors to beams in turns instead of keeping them together."""

    name = "tiling"

    def change(self, x: Tensor, slot: Slot) -> Tensor:
        own = next(iter(slot.perception.deltas.values())).a.mean(dim=(1, 2))  # [B]
        return x * own.repeat(x.shape[0] // len(own))[:, None, None]
