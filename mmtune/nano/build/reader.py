"""From a batch of contexts and questions to the loss of a small Llama, and how often it answers right."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from mmtune.nano.build.contexts import COUNTED, Batch
from mmtune.nano.build.lean import forward, make_layout
from mmtune.nano.build.vocabulary import BOS, EOS, PAD
from mmtune.nano.world.scene import COLORS, COLUMNS, ROWS, SHAPES, SHORT_TYPES, SIZES

FACTS = [len(SHAPES), len(COLORS), len(SIZES), len(ROWS), len(COLUMNS), 3]
TOLD_LAYER, ASKED_LAYER = 2, 3
"""The hints read the residual stream before these layers."""
IGNORED = -100
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
    """Runs batches through the model; ``seed`` fixes the noise added to context vectors.

    ``hints`` are linear heads, thrown away in the end, that read all attributes of a thing in the middle of the model:
    where the thing ends in a text, and where a question names it. Without them text takes many times as long.
    """

    def __init__(self, model: LlamaForCausalLM, seed: int) -> None:
        self.model = model
        width = model.config.hidden_size
        self.hints = nn.ModuleDict({"told": nn.Linear(width, sum(FACTS)), "asked": nn.Linear(width, sum(FACTS))})
        self.noise = torch.Generator().manual_seed(seed)

    def logits(self, batch: Batch, depth: int = 0) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
        """Logits, targets and marks of all scored tokens, their rows and places, and the loss of the hints.

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
        state, before = forward(self.model, embeds, layout, added, depth)
        marks = torch.from_numpy(batch.scored)
        rows, places = torch.nonzero(marks, as_tuple=True)
        logits = functional.linear(state[rows, places - 1], self.model.lm_head.weight.bfloat16()).float()
        return logits, ids[rows, places], marks[rows, places], (rows, places), self._hint(batch, before)

    def _hint(self, batch: Batch, before: list[Tensor]) -> Tensor:
        """Mean cross-entropy of what the hints read."""
        losses = []
        for name, state in (("told", before[TOLD_LAYER]), ("asked", before[ASKED_LAYER])):
            marks = torch.from_numpy(getattr(batch, name))
            rows, places = torch.nonzero(marks >= 0, as_tuple=True)
            if not len(rows):
                continue
            thing = marks[rows, places]
            facts = torch.from_numpy(batch.facts)[rows, thing.clamp(max=2)].clone()
            facts[thing == COUNTED, :-1] = IGNORED
            facts[thing != COUNTED, -1] = IGNORED
            picked = functional.rms_norm(state[rows, places], state.shape[-1:])
            for logits, fact in zip(self.hints[name](picked).split(FACTS, 1), facts.unbind(1), strict=True):
                if (fact != IGNORED).any():
                    losses.append(functional.cross_entropy(logits, fact, ignore_index=IGNORED))
        return torch.stack(losses).mean() if losses else torch.zeros(())

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

    def loss(self, batch: Batch, depth: int = 0) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the answers, with ``</s>`` at a small weight; and that of the hints."""
        logits, targets, marks, _, hint = self.logits(batch, depth)
        weight = torch.where(marks == 1, 1.0, END_WEIGHT)
        answers = (functional.cross_entropy(logits, targets, reduction="none") * weight).sum() / weight.sum()
        return answers, hint

    @torch.no_grad()
    def accuracy(self, batch: Batch, depth: int = 0) -> dict[str, float]:
        """Share of the answers that are right in every token, for each type."""
        logits, targets, _, (rows, places), _ = self.logits(batch, depth)
        wrong = (logits.argmax(1) != targets).numpy()
        answer = rows.numpy() * 1000 + batch.segment[places.numpy()]
        keys, first = np.unique(answer, return_index=True)
        right = ~np.isin(keys, np.unique(answer[wrong]))
        types = batch.type[rows.numpy()[first], places.numpy()[first]]
        names = (*SHORT_TYPES, "describe")
        return {names[type]: round(float(right[types == type].mean()), 3) for type in np.unique(types)}
