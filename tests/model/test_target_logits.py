"""The LM head at target positions only: the same loss and gradients as with all logits, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor

from mmtune.model.configuration import MMTuneConfig
from mmtune.model.modeling import MMTuneModel
from tests.hosts.families import VARIANTS, make, prompts
from tests.tiny import VOCAB_SIZE

# What stands between the hidden states and the loss in some families must be far from neutral to be seen.
STRONG: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 1.5},
    "gemma3_text": {"final_logit_softcapping": 1.5},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 3.0},
    "granite": {"logits_scaling": 4.0},
}


def text_model(variant: str) -> MMTuneModel:
    lm = make(variant, **STRONG.get(variant, {}))
    return MMTuneModel(MMTuneConfig(method="llava"), lm, {}, {}).train()


def rows() -> dict[str, Tensor]:
    """Three rows of 4, 9 and 7 tokens with 0, 5 and 1 targets."""
    ids = prompts(batch=3, length=9)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    mask[2, 7:] = 0
    labels = torch.full_like(ids, -100)
    labels[1, 0], labels[1, 2:6], labels[1, 8] = ids[1, 0], ids[1, 2:6], ids[1, 8]  # the first has no predecessor
    labels[2, 6] = ids[2, 6]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model: MMTuneModel, **options: Any) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(0)  # dropout of the older families
    model.zero_grad()
    output = model(**rows(), **options)
    output.loss.backward()
    return output, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_those_of_all_logits(variant: str) -> None:
    model = text_model(variant)
    everywhere, expected = loss_and_gradients(model)
    focused, found = loss_and_gradients(model, target_logits_only=True)
    assert everywhere.logits.shape == (3, 9, VOCAB_SIZE)
    assert focused.logits.shape == (6, VOCAB_SIZE)
    torch.testing.assert_close(focused.loss, everywhere.loss, rtol=1e-6, atol=0)
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_family_that_cannot_slice_gives_the_same() -> None:
    model = text_model("llama")
    expected = loss_and_gradients(model, target_logits_only=True)[0]
    model._slices_logits = False
    found = loss_and_gradients(model, target_logits_only=True)[0]
    assert found.logits.shape == expected.logits.shape
    torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.22"), reason="before transformers 5.22 all logits are computed"
)
def test_the_head_sees_nothing_but_targets() -> None:
    model, seen = text_model("llama"), []
    head = model.get_output_embeddings()
    assert head is not None
    head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[:-1].numel()))
    model(**rows(), target_logits_only=True)
    model(**rows())
    assert seen == [6, 27]


def test_no_target_at_all_gives_a_zero_that_backward_can_take() -> None:
    model = text_model("llama")
    batch = rows()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = model(**batch, num_items_in_batch=3, target_logits_only=True).loss
    loss.backward()
    assert loss.item() == 0.0


def test_without_labels_all_logits_come() -> None:
    batch = rows()
    del batch["labels"]
    assert text_model("llama")(**batch, target_logits_only=True).logits.shape == (3, 9, VOCAB_SIZE)
