"""A method of your own: one class, one entry point.

"Gist" reads a picture as a few tokens: learned queries attend to the patches once. In a package of yours the entry
would be

    [project.entry-points."mmtune.methods"]
    gist = "my_package.gist:Gist"

and ``mmtune finetune --method gist`` works, with help, checkpoints, generate and eval. Run this file to see it checked
and trained for a few steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import nn

import mmtune
from mmtune.core import config
from mmtune.methods import METHODS
from mmtune.testing import check_method


class GistSettings(config.Settings):
    tokens: int = Field(default=4, ge=1)  # positions that one item takes in the sequence


class Gist(mmtune.Method):
    """A fixed number of tokens an item, whatever the encoder's resolution."""

    name = "gist"
    Settings = GistSettings

    def __init__(self, settings: GistSettings, lm, modalities) -> None:
        super().__init__(settings, lm, modalities)
        self.tokens = settings.tokens
        width = next(iter(modalities.values())).width
        self.queries = nn.Parameter(torch.randn(settings.tokens, width) / width**0.5)
        self.projector = nn.Linear(width, lm.hidden_size)

    def placeholders(self, modality: str, positions: int) -> int:
        return self.tokens

    def perceive(self, features: Mapping[str, mmtune.Features], batch_size: int) -> mmtune.Perception:
        tokens = {}
        for name, seen in features.items():
            values = seen.values.to(self.queries.dtype)  # [N, P, D]
            scores = self.queries @ values.transpose(1, 2) / values.shape[-1] ** 0.5  # [N, K, P]
            if seen.mask is not None:
                scores = scores.masked_fill(~seen.mask.unsqueeze(1), float("-inf"))
            tokens[name] = self.projector(scores.softmax(-1) @ values).flatten(0, 1)  # [N * K, H]
        return mmtune.Perception(tokens=tokens)

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        return {"projector": [self.queries, *self.projector.parameters()]}


def main() -> None:
    print(check_method(Gist))
    METHODS.register("gist", Gist)
    model, processor = mmtune.build_model(method="gist", settings={"tokens": 8})  # on the embedded nano base
    model.set_trainable(["method"])
    for row in model.describe():
        print(row)
    batch = processor(text=["USER: <image>\nwhat color is the circle? ASSISTANT: red"], images=["examples/dino.png"])
    print("logits", tuple(model(**batch).logits.shape))


if __name__ == "__main__":
    main()
