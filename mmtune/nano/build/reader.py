"""From a batch of contexts and questions to the loss of a small Llama, and how often it answers right."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from mmtune.nano.build.contexts import Batch
from mmtune.nano.build.lean import forward, make_layout
from mmtune.nano.build.vocabulary import BOS, EOS, PAD
from mmtune.nano.world.scene import SHORT_TYPES

EMBEDDING_STD = 0.25
END_WEIGHT = 0.2
"""What ``</s>`` weighs in the loss, against 1 for a token of the answer."""


def make_model(vocabulary: int, hidden: int = 128, layers: int = 4, heads: int = 4, mlp: int = 352) -> LlamaForCausalLM:
    """Return a fresh model; embeddings are drawn wide, so that sums of word vectors stay readable."""
    config = LlamaConfig(
        vocab_size=(vocabulary + 7) // 8 * 8,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, EMBEDDING_STD)
    return model


class Reader:
    """Runs batches through the model; ``seed`` fixes the noise added to context vectors."""

    def __init__(self, model: LlamaForCausalLM, seed: int) -> None:
        self.model = model
        self.noise = torch.Generator().manual_seed(seed)

    def logits(self, batch: Batch, depth: int = 0) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Logits, targets and marks of all scored tokens, and their rows and places.

        What is added to the words of a question joins the residual stream before layer ``depth``.
        """
        ids = torch.from_numpy(batch.ids)
        segment = torch.from_numpy(batch.segment)
        config = self.model.config
        layout = make_layout(
            torch.from_numpy(batch.valid),
            int((segment == 0).sum()),
            int(segment[-1]),
            bool(batch.joined.any()),
            float(config.rope_parameters["rope_theta"]),
            config.hidden_size // config.num_attention_heads,
        )
        embeds, added = self._vectors(ids, batch)
        state = forward(self.model, embeds, layout, added, depth)
        marks = torch.from_numpy(batch.scored)
        rows, places = torch.nonzero(marks, as_tuple=True)
        logits = functional.linear(state[rows, places - 1], self.model.lm_head.weight.bfloat16()).float()
        return logits, ids[rows, places], marks[rows, places], (rows, places)

    def _vectors(self, ids: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Input embeddings, and what is added to them: sums of word vectors, and noise."""
        table = self.model.get_input_embeddings().weight
        embeds = table[ids] * (~torch.from_numpy(batch.replace)).float()[..., None]
        scale = torch.from_numpy(batch.bag_scale)
        rows, places = torch.nonzero(scale, as_tuple=True)
        spread = torch.from_numpy(batch.noise)
        if not len(rows) and not batch.noise.any():
            return embeds, None
        words = torch.from_numpy(batch.bags)[rows, places]
        total = (table[words.clamp(min=0)] * (words >= 0)[..., None]).sum(1) * scale[rows, places][:, None]
        added = torch.zeros_like(embeds).index_put((rows, places), total)
        noise = torch.randn(embeds.shape, generator=self.noise) * float(table.detach()[3:].std())
        return embeds, added + noise * spread[..., None]

    def loss(self, batch: Batch, depth: int = 0) -> Tensor:
        """Mean cross-entropy of the answers, with ``</s>`` at a small weight."""
        logits, targets, marks, _ = self.logits(batch, depth)
        weight = torch.where(marks == 1, 1.0, END_WEIGHT)
        return (functional.cross_entropy(logits, targets, reduction="none") * weight).sum() / weight.sum()

    @torch.no_grad()
    def accuracy(self, batch: Batch, depth: int = 0) -> dict[str, float]:
        """Share of the answers that are right in every token, for each type."""
        logits, targets, _, (rows, places) = self.logits(batch, depth)
        wrong = (logits.argmax(1) != targets).numpy()
        answer = rows.numpy() * 1000 + batch.segment[places.numpy()]
        keys, first = np.unique(answer, return_index=True)
        right = ~np.isin(keys, np.unique(answer[wrong]))
        types = batch.type[rows.numpy()[first], places.numpy()[first]]
        names = (*SHORT_TYPES, "describe")
        return {names[type]: round(float(right[types == type].mean()), 3) for type in np.unique(types)}
